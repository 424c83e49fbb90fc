//! Calls of drivers, in the version that each of them serves.

use std::collections::HashMap;
use std::time::Duration;

use rpc::tonic::{Code, Response, Status};
use rpc::{Channel, dra as v1, dra_v1beta1 as v1beta1};

use super::state::{Claim, Device};

/// Longest wait for an answer (upstream's `defaultClientCallTimeout`).
const ANSWER_MAX: Duration = Duration::from_secs(45);

/// Version of the service that a driver serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `v1.DRAPlugin`
    V1,
    /// `v1beta1.DRAPlugin`
    V1Beta1,
}

impl Version {
    /// The version to speak, of those that a driver names.
    pub fn of(services: &[String]) -> Result<Version, String> {
        if services.is_empty() {
            return Err("empty list for supported gRPC services (aka supported versions)".into());
        }
        let serves = |name: &str| services.iter().any(|service| service == name);
        match (serves("v1.DRAPlugin"), serves("v1beta1.DRAPlugin")) {
            (true, _) => Ok(Version::V1),
            (_, true) => Ok(Version::V1Beta1),
            _ => Err(format!("none of the supported gRPC services are provided: {}", services.join(", "))),
        }
    }
}

/// What became of each claim, by uid.
pub type Outcomes<T> = HashMap<String, Result<T, String>>;

fn say(status: &Status) -> String {
    let code = match status.code() {
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

async fn in_time<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_MAX, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(say(&status)),
        Err(_) => Err("rpc error: code = DeadlineExceeded desc = context deadline exceeded".into()),
    }
}

fn outcome<T>(error: String, value: T) -> Result<T, String> {
    if error.is_empty() { Ok(value) } else { Err(error) }
}

/// Asks a driver to make claims ready. An error is the driver's as a whole.
pub async fn prepare(
    channel: &Channel,
    version: Version,
    claims: &[Claim],
) -> Result<Outcomes<Vec<Device>>, String> {
    match version {
        Version::V1 => {
            let own = |c: &Claim| v1::Claim {
                namespace: c.namespace.clone(),
                uid: c.uid.clone(),
                name: c.name.clone(),
            };
            let request = v1::NodePrepareResourcesRequest { claims: claims.iter().map(own).collect() };
            let mut client = v1::dra_plugin_client::DraPluginClient::new(channel.clone());
            let answer = in_time(client.node_prepare_resources(request)).await?;
            let device = |d: v1::Device| Device {
                pool_name: d.pool_name,
                device_name: d.device_name,
                share_id: d.share_id,
                request_names: d.request_names,
                cdi_device_ids: d.cdi_device_ids,
            };
            let all = answer.claims.into_iter();
            Ok(all
                .map(|(uid, c)| (uid, outcome(c.error, c.devices.into_iter().map(device).collect())))
                .collect())
        }
        Version::V1Beta1 => {
            let own = |c: &Claim| v1beta1::Claim {
                namespace: c.namespace.clone(),
                uid: c.uid.clone(),
                name: c.name.clone(),
            };
            let request = v1beta1::NodePrepareResourcesRequest { claims: claims.iter().map(own).collect() };
            let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(channel.clone());
            let answer = in_time(client.node_prepare_resources(request)).await?;
            let device = |d: v1beta1::Device| Device {
                pool_name: d.pool_name,
                device_name: d.device_name,
                share_id: None,
                request_names: d.request_names,
                cdi_device_ids: d.cdi_device_ids,
            };
            let all = answer.claims.into_iter();
            Ok(all
                .map(|(uid, c)| (uid, outcome(c.error, c.devices.into_iter().map(device).collect())))
                .collect())
        }
    }
}

/// Asks a driver to undo what it did for claims.
pub async fn unprepare(
    channel: &Channel,
    version: Version,
    claims: &[Claim],
) -> Result<Outcomes<()>, String> {
    match version {
        Version::V1 => {
            let own = |c: &Claim| v1::Claim {
                namespace: c.namespace.clone(),
                uid: c.uid.clone(),
                name: c.name.clone(),
            };
            let request = v1::NodeUnprepareResourcesRequest { claims: claims.iter().map(own).collect() };
            let mut client = v1::dra_plugin_client::DraPluginClient::new(channel.clone());
            let answer = in_time(client.node_unprepare_resources(request)).await?;
            Ok(answer.claims.into_iter().map(|(uid, c)| (uid, outcome(c.error, ()))).collect())
        }
        Version::V1Beta1 => {
            let own = |c: &Claim| v1beta1::Claim {
                namespace: c.namespace.clone(),
                uid: c.uid.clone(),
                name: c.name.clone(),
            };
            let request = v1beta1::NodeUnprepareResourcesRequest { claims: claims.iter().map(own).collect() };
            let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(channel.clone());
            let answer = in_time(client.node_unprepare_resources(request)).await?;
            Ok(answer.claims.into_iter().map(|(uid, c)| (uid, outcome(c.error, ()))).collect())
        }
    }
}

/// Whether a driver has answered for every claim, and well. `call` is its name.
pub fn check<T>(call: &str, claims: &[Claim], outcomes: &Outcomes<T>) -> Result<(), String> {
    for (uid, outcome) in outcomes {
        let Some(claim) = claims.iter().find(|claim| claim.uid == *uid) else {
            return Err(format!("{call} returned result for unknown claim UID {uid}"));
        };
        if let Err(why) = outcome {
            return Err(format!("{call} failed for ResourceClaim {}: {why}", claim.name));
        }
    }
    match claims.len() - outcomes.len() {
        0 => Ok(()),
        left => Err(format!("{call} skipped {left} ResourceClaims")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let of = |list: &[&str]| Version::of(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["v1beta1.DRAPlugin", "v1.DRAPlugin"]), Ok(Version::V1));
        assert_eq!(of(&["v1beta1.DRAPlugin"]), Ok(Version::V1Beta1));
        assert!(of(&[]).is_err() && of(&["v1.Other"]).is_err());
    }

    #[test]
    fn answers() {
        let claims = [Claim { uid: "1".into(), name: "c".into(), ..Claim::default() }];
        let outcomes = |list: &[(&str, Result<(), String>)]| -> Outcomes<()> {
            list.iter().map(|(uid, outcome)| ((*uid).to_owned(), outcome.clone())).collect()
        };
        assert_eq!(check("X", &claims, &outcomes(&[("1", Ok(()))])), Ok(()));
        assert_eq!(check("X", &claims, &outcomes(&[])), Err("X skipped 1 ResourceClaims".into()));
        let failed = outcomes(&[("1", Err("broken".into()))]);
        assert_eq!(check("X", &claims, &failed), Err("X failed for ResourceClaim c: broken".into()));
        let other = outcomes(&[("2", Ok(()))]);
        assert_eq!(check("X", &claims, &other), Err("X returned result for unknown claim UID 2".into()));
    }
}
