//! `resourcequota-controller`: adds up what each ResourceQuota limits and writes it into the status.
//!
//! Flow: quota events, and changes of whatever some quota counts -> key of the quota -> sum of the charges in its
//! namespace -> status. Only what a quota names is watched, and of that only what it costs is kept.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::prelude::DecodeError;
use client::{BoxFuture, Client, RestMapper};
use jiff::Timestamp;
use meta::Gvr;
use quota::{Amounts, Charge, Quota};
use reconcile::{
    Action, Cached, Context, ControlError, Controller, Descriptor, Event, Informer, Informers, Reconcile,
    Scope, WorkQueue,
};
use serde_json::{Map, Value, json};

const NAME: &str = "resourcequota-controller";
/// Quotas in work at once (upstream's default).
const WORKERS: usize = 5;
/// A new object was charged when it was admitted; what is there is added up a little later, once for many.
const SETTLE: Duration = Duration::from_millis(500);

/// The row of `resourcequota-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

fn decode(json: &[u8]) -> Result<Value, DecodeError> {
    serde_json::from_slice(json).map_err(|source| DecodeError { kind: "object", source })
}

fn text(value: &Value, key: &str) -> Box<str> {
    value["metadata"][key].as_str().unwrap_or_default().into()
}

/// A ResourceQuota.
struct Limits {
    namespace: Box<str>,
    version: Box<str>,
    value: Value,
}

impl Cached for Limits {
    fn decode_cached(json: &[u8]) -> Result<Self, DecodeError> {
        let value = decode(json)?;
        Ok(Limits { namespace: text(&value, "namespace"), version: text(&value, "resourceVersion"), value })
    }
    fn cache_key(&self) -> String {
        format!("{}/{}", self.namespace, self.value["metadata"]["name"].as_str().unwrap_or_default())
    }
    fn cache_version(&self) -> &str {
        &self.version
    }
}

/// A resource whose objects cost more than their count.
trait Priced: Send + Sync + 'static {
    const GROUP: &'static str;
    const RESOURCE: &'static str;
}

macro_rules! priced {
    ($($name:ident = $group:literal $resource:literal;)*) => {$(
        struct $name;
        impl Priced for $name {
            const GROUP: &'static str = $group;
            const RESOURCE: &'static str = $resource;
        }
    )*};
}

priced! {
    Pods = "" "pods";
    Services = "" "services";
    Claims = "" "persistentvolumeclaims";
    Devices = "resource.k8s.io" "resourceclaims";
    // Everything else costs its count, whatever its name is.
    Others = "" "";
}

/// What is kept of an object: what it costs.
struct Item<R> {
    key: Box<str>,
    namespace: Box<str>,
    version: Box<str>,
    charge: Charge,
    resource: PhantomData<R>,
}

impl<R: Priced> Cached for Item<R> {
    fn decode_cached(json: &[u8]) -> Result<Self, DecodeError> {
        let value = decode(json)?;
        let (namespace, name) = (text(&value, "namespace"), text(&value, "name"));
        let (key, version) = (format!("{namespace}/{name}").into(), text(&value, "resourceVersion"));
        let object = if let Value::Object(object) = value { object } else { Map::new() };
        // That a grace period has passed shows in the deletion that follows.
        let charge = quota::charge(R::GROUP, R::RESOURCE, &object, Timestamp::MIN);
        Ok(Item { key, namespace, version, charge, resource: PhantomData })
    }
    fn cache_key(&self) -> String {
        self.key.to_string()
    }
    fn cache_version(&self) -> &str {
        &self.version
    }
}

/// Index by namespace.
const BY_NAMESPACE: &str = "namespace";

/// A followed resource: what it costs in a namespace.
trait Source: Send + Sync {
    fn synced(&self) -> BoxFuture<'_, ()>;
    /// The charges in a namespace.
    fn charges(&self, namespace: &str) -> Vec<Charge>;
}

struct Followed<R: Priced> {
    informer: Arc<Informer<Item<R>>>,
    /// Name under which objects are counted.
    count: String,
}

impl<R: Priced> Source for Followed<R> {
    fn synced(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.informer.synced())
    }
    fn charges(&self, namespace: &str) -> Vec<Charge> {
        let items = self.informer.store().by_index(BY_NAMESPACE, namespace);
        items
            .iter()
            .map(|item| match R::RESOURCE {
                "" => Charge {
                    amounts: [(self.count.clone(), meta::quantity::Quantity::from_units(1))].into(),
                    ..Default::default()
                },
                _ => item.charge.clone(),
            })
            .collect()
    }
}

struct Loop {
    client: Client,
    informers: Arc<Informers>,
    quotas: Arc<Informer<Limits>>,
    sources: Mutex<HashMap<(String, String), Arc<dyn Source>>>,
    queue: Arc<WorkQueue>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let gvr = Gvr::new("", "v1", "resourcequotas");
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        informers: context.informers.clone(),
        quotas: context.informers.get_dynamic::<Limits>(gvr, Scope::default(), false),
        sources: Mutex::default(),
        queue: queue.clone(),
    });
    this.quotas.store().add_index(BY_NAMESPACE, |q| vec![q.namespace.to_string()]);
    let to = queue.clone();
    let spec = |limits: &Limits| limits.value.get("spec").cloned();
    this.quotas.on_event(move |event| match event {
        Event::Deleted(_) => {}
        // Charged at admission: what was charged for may not be in the caches yet and must not be given back.
        Event::Updated { old, new } if spec(old) == spec(new) => to.add_after(new.cache_key(), SETTLE),
        _ => to.add(event.object().cache_key()),
    });
    Controller::new(queue, Arc::new(Shared(this.clone())), WORKERS).after(&this.quotas)
}

impl Loop {
    /// Quotas of a namespace are worth a look.
    fn look_at(&self, namespace: &str, delay: Duration) {
        for quota in self.quotas.store().by_index(BY_NAMESPACE, namespace) {
            self.queue.add_after(quota.cache_key(), delay);
        }
    }

    fn follow<R: Priced>(self: &Arc<Self>, gvr: Gvr) -> Arc<dyn Source> {
        let count = quota::count_name(&gvr.group, &gvr.resource);
        let metadata_only = R::RESOURCE.is_empty();
        let informer = self.informers.get_dynamic::<Item<R>>(gvr, Scope::default(), metadata_only);
        informer.store().add_index(BY_NAMESPACE, |item| vec![item.namespace.to_string()]);
        let this = Arc::downgrade(self);
        informer.on_event(move |event| {
            let Some(this) = this.upgrade() else { return };
            match event {
                Event::Added(item) => this.look_at(&item.namespace, SETTLE),
                Event::Updated { old, new } if old.charge == new.charge => {}
                _ => this.look_at(&event.object().namespace, Duration::ZERO),
            }
        });
        Arc::new(Followed { informer, count })
    }

    /// The source of a resource; `None` if nobody serves it.
    async fn source(
        self: &Arc<Self>,
        group: &str,
        resource: &str,
    ) -> Result<Option<Arc<dyn Source>>, ControlError> {
        let key = (group.to_owned(), resource.to_owned());
        let known =
            |this: &Self| this.sources.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(source) = known(self) {
            return Ok(Some(source));
        }
        let mapper = RestMapper::discover(&self.client).await?;
        let Some(served) = mapper.preferred().find(|r| r.gvr.group == group && r.gvr.resource == resource)
        else {
            return Ok(None);
        };
        if !["list", "watch"].iter().all(|verb| served.can(verb)) {
            return Ok(None);
        }
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let source = sources.entry(key).or_insert_with(|| {
            let gvr = served.gvr.clone();
            match (group, resource) {
                (Pods::GROUP, Pods::RESOURCE) => self.follow::<Pods>(gvr),
                (Services::GROUP, Services::RESOURCE) => self.follow::<Services>(gvr),
                (Claims::GROUP, Claims::RESOURCE) => self.follow::<Claims>(gvr),
                (Devices::GROUP, Devices::RESOURCE) => self.follow::<Devices>(gvr),
                _ => self.follow::<Others>(gvr),
            }
        });
        Ok(Some(source.clone()))
    }

    async fn sync(self: &Arc<Self>, key: &str) -> Result<Action, ControlError> {
        let Some(limits) = self.quotas.store().get(key) else { return Ok(Action::Wait) };
        let quota = Quota::of_spec(&limits.value);
        let mut resources: Vec<(&str, &str)> =
            quota.hard.keys().filter_map(|n| quota::resource_of(n)).collect();
        resources.sort_unstable();
        resources.dedup();
        let mut charges = Vec::new();
        for (group, resource) in resources {
            let Some(source) = self.source(group, resource).await? else { continue };
            source.synced().await;
            let mut of_one = source.charges(&limits.namespace);
            add_bare_count(group, resource, &mut of_one);
            charges.append(&mut of_one);
        }
        let status = status(&quota, &charges);
        if limits.value["status"] == status {
            return Ok(Action::Wait);
        }
        let gvr = Gvr::new("", "v1", "resourcequotas");
        let mut object = limits.value.clone();
        object["status"] = status;
        match self.client.update_status(&gvr, &limits.namespace, &quota.name, &object).await {
            Err(error) if error.is_not_found() => Ok(Action::Wait),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Action::Wait),
        }
    }
}

/// Objects of the core group that quotas also count by their bare name.
fn add_bare_count(group: &str, resource: &str, charges: &mut [Charge]) {
    if !group.is_empty() {
        return;
    }
    let count = quota::count_name(group, resource);
    for charge in charges.iter_mut().filter(|c| !c.traits.is_pod) {
        if let Some(one) = charge.amounts.get(&count).copied() {
            charge.amounts.insert(resource.to_owned(), one);
        }
    }
}

/// The status of a quota given everything in its namespace.
fn status(quota: &Quota, charges: &[Charge]) -> Value {
    let zero = meta::quantity::Quantity::from_units(0);
    let mut used: Amounts = quota.hard.keys().map(|name| (name.clone(), zero)).collect();
    for charge in charges {
        for (name, amount) in quota.share(charge) {
            let entry = used.entry(name).or_insert(zero);
            *entry = entry.plus(amount);
        }
    }
    let show = |amounts: &Amounts| -> Map<String, Value> {
        amounts.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect()
    };
    json!({"hard": show(&quota.hard), "used": show(&used)})
}

/// The loop in a shape that can hand out references to itself.
struct Shared(Arc<Loop>);

impl Reconcile for Shared {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.0.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_summed() {
        let quota = Quota::of_spec(&json!({"metadata": {"name": "q"},
            "spec": {"hard": {"secrets": "5", "count/secrets": "4"}}}));
        let mut charges: Vec<Charge> = (0..3)
            .map(|_| Charge {
                amounts: [("count/secrets".to_owned(), meta::quantity::Quantity::from_units(1))].into(),
                ..Default::default()
            })
            .collect();
        add_bare_count("", "secrets", &mut charges);
        let status = status(&quota, &charges);
        assert_eq!(
            status,
            json!({"hard": {"secrets": "5", "count/secrets": "4"}, "used": {"secrets": "3", "count/secrets": "3"}})
        );
    }
}
