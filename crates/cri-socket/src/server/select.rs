//! Finding what a caller means: ids may be cut short, filters too.

use std::collections::BTreeMap;

use cri::{ContainerFilter, ContainerStatus, PodSandboxFilter, PodSandboxStatus};
use rpc::tonic::Status;

use super::{Server, told};

/// Where an id belongs among others: the whole one it begins.
fn whole<'a>(given: &str, mut all: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let found = all.find(|id| id.starts_with(given))?;
    (found.len() == given.len() || all.all(|id| !id.starts_with(given) || id == found)).then_some(found)
}

impl Server {
    /// The whole id of a sandbox; what is unknown stays as it is, for the runtime to say so.
    pub(super) async fn sandbox_id(&self, given: &str) -> Result<String, Status> {
        if given.is_empty() {
            return Err(Status::invalid_argument("missing required pod_sandbox_id"));
        }
        if self.runtime.pod_sandbox_status(given).await.is_ok() {
            return Ok(given.to_owned());
        }
        let all = told(self.runtime.list_pod_sandboxes(&PodSandboxFilter::default()).await)?;
        Ok(whole(given, all.iter().map(|status| status.id.as_str())).unwrap_or(given).to_owned())
    }

    /// The whole id of a container.
    pub(super) async fn container_id(&self, given: &str) -> Result<String, Status> {
        if given.is_empty() {
            return Err(Status::invalid_argument("missing required container_id"));
        }
        if self.runtime.container_status(given).await.is_ok() {
            return Ok(given.to_owned());
        }
        let all = told(self.runtime.list_containers(&ContainerFilter::default()).await)?;
        Ok(whole(given, all.iter().map(|status| status.id.as_str())).unwrap_or(given).to_owned())
    }

    /// Sandboxes that pass a filter, oldest first.
    pub(super) async fn sandboxes(
        &self,
        mut filter: PodSandboxFilter,
    ) -> Result<Vec<PodSandboxStatus>, Status> {
        if let Some(id) = &mut filter.id {
            *id = self.sandbox_id(id).await?;
        }
        let mut found = told(self.runtime.list_pod_sandboxes(&filter).await)?;
        found.sort_by_key(|status| status.created_at);
        Ok(found)
    }

    /// Containers that pass a filter, oldest first.
    pub(super) async fn containers(
        &self,
        mut filter: ContainerFilter,
    ) -> Result<Vec<ContainerStatus>, Status> {
        if let Some(id) = &mut filter.id {
            *id = self.container_id(id).await?;
        }
        if let Some(id) = &mut filter.sandbox_id {
            *id = self.sandbox_id(id).await?;
        }
        let mut found = told(self.runtime.list_containers(&filter).await)?;
        found.sort_by_key(|status| status.created_at);
        Ok(found)
    }

    /// Containers of one sandbox.
    pub(super) async fn containers_of(&self, sandbox: &str) -> Result<Vec<ContainerStatus>, Status> {
        self.containers(ContainerFilter { sandbox_id: Some(sandbox.to_owned()), ..Default::default() }).await
    }
}

/// A filter of statistics as one of containers.
pub(super) fn of_stats(
    id: &str,
    sandbox: &str,
    labels: BTreeMap<String, String>,
    state: Option<cri::ContainerState>,
) -> ContainerFilter {
    use crate::convert::some_text;
    ContainerFilter { id: some_text(id), sandbox_id: some_text(sandbox), state, labels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ids() {
        let find = |given| whole(given, ["abc1", "abc2", "b"].into_iter());
        assert_eq!((find("abc1"), find("b"), find("abc"), find("x")), (Some("abc1"), Some("b"), None, None));
        assert_eq!(whole("ab", ["ab", "abc"].into_iter()), Some("ab"));
    }
}
