//! Which devices and processors containers have, told on a socket (`podresources/v1`) to monitors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::prelude::*;
use rpc::Routes;
use rpc::podresources as v1;
use rpc::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use rpc::tonic::{Request, Response, Status, async_trait};

use crate::agent::Agent;
use crate::memory::table::Block;
use crate::spec::{self, Role};

/// The service.
pub(super) fn routes(agent: Arc<Agent>) -> Routes {
    Routes::new().with(PodResourcesListerServer::new(Lister(agent)))
}

struct Lister(Arc<Agent>);

fn topology(nodes: impl IntoIterator<Item = i64>) -> Option<v1::TopologyInfo> {
    let nodes: BTreeSet<i64> = nodes.into_iter().collect();
    (!nodes.is_empty())
        .then(|| v1::TopologyInfo { nodes: nodes.into_iter().map(|id| v1::NumaNode { id }).collect() })
}

fn memory(blocks: Vec<Block>) -> Vec<v1::ContainerMemory> {
    let of = |block: Block| v1::ContainerMemory {
        memory_type: block.kind,
        size: block.size,
        topology: topology(block.numa_affinity.into_iter().map(i64::from)),
    };
    blocks.into_iter().map(of).collect()
}

impl Lister {
    fn of(&self, pod: &Pod) -> v1::PodResources {
        let healthy = self.0.devices.healthy();
        let nodes: BTreeMap<(&str, &str), &Vec<i64>> = healthy
            .iter()
            .flat_map(|(name, devices)| devices.iter().map(move |(id, n)| ((name.as_str(), id.as_str()), n)))
            .collect();
        let mut given = self.0.devices.given(pod.uid());
        let containers = spec::containers(pod).into_iter().filter(|(role, _)| *role != Role::Ephemeral);
        let containers = containers.map(|(_, container)| {
            let container = &*container;
            let own = given.remove(&container.name).unwrap_or_default().into_iter();
            let devices = own.map(|(name, given)| {
                let near = given.ids.iter().filter_map(|id| nodes.get(&(name.as_str(), id.as_str())));
                v1::ContainerDevices {
                    topology: topology(near.flat_map(|nodes| nodes.iter().copied())),
                    device_ids: given.ids.iter().cloned().collect(),
                    resource_name: name,
                }
            });
            v1::ContainerResources {
                devices: devices.collect(),
                cpu_ids: self.0.cpus.own(pod.uid(), &container.name).into_iter().map(i64::from).collect(),
                name: container.name.clone(),
                memory: memory(self.0.memory.blocks(pod.uid(), &container.name)),
                dynamic_resources: self.claims(pod, container),
            }
        });
        v1::PodResources {
            containers: containers.collect(),
            name: pod.name().to_owned(),
            namespace: pod.namespace().to_owned(),
            cpu_ids: Vec::new(),
            memory: Vec::new(),
        }
    }

    /// What a container has of claims.
    fn claims(&self, pod: &Pod, container: &Container) -> Vec<v1::DynamicResource> {
        let all = self.0.dra.devices(pod, container).unwrap_or_default();
        let one = |(claim_name, devices): (String, Vec<(String, crate::dra::state::Device)>)| {
            let resources = devices.into_iter().map(|(driver_name, device)| v1::ClaimResource {
                cdi_devices: device.cdi_device_ids.into_iter().map(|name| v1::CdiDevice { name }).collect(),
                driver_name,
                pool_name: device.pool_name,
                device_name: device.device_name,
                share_id: device.share_id,
            });
            let claim_resources = resources.collect();
            v1::DynamicResource { claim_name, claim_namespace: pod.namespace().to_owned(), claim_resources }
        };
        all.into_iter().map(one).collect()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods: Vec<Arc<Pod>> = self.0.admitted.lock().values().cloned().collect();
        pods.sort_by_key(|pod| pod.key());
        pods
    }
}

#[async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<v1::ListPodResourcesRequest>,
    ) -> Result<Response<v1::ListPodResourcesResponse>, Status> {
        let pod_resources = self.pods().iter().map(|pod| self.of(pod)).collect();
        Ok(Response::new(v1::ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<v1::AllocatableResourcesRequest>,
    ) -> Result<Response<v1::AllocatableResourcesResponse>, Status> {
        let devices = self.0.devices.healthy().into_iter().flat_map(|(name, devices)| {
            devices.into_iter().map(move |(id, nodes)| v1::ContainerDevices {
                resource_name: name.clone(),
                device_ids: vec![id],
                topology: topology(nodes),
            })
        });
        Ok(Response::new(v1::AllocatableResourcesResponse {
            devices: devices.collect(),
            cpu_ids: self.0.cpus.allocatable().into_iter().map(i64::from).collect(),
            memory: memory(self.0.memory.allocatable()),
        }))
    }

    async fn get(
        &self,
        request: Request<v1::GetPodResourcesRequest>,
    ) -> Result<Response<v1::GetPodResourcesResponse>, Status> {
        let request = request.into_inner();
        let (namespace, name) = (request.pod_namespace, request.pod_name);
        let pods = self.pods();
        let found = pods.iter().find(|pod| pod.namespace() == namespace && pod.name() == name);
        let found =
            found.ok_or_else(|| Status::unknown(format!("pod {name} in namespace {namespace} not found")))?;
        Ok(Response::new(v1::GetPodResourcesResponse { pod_resources: Some(self.of(found)) }))
    }
}
