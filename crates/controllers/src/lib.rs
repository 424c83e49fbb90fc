//! The built-in controllers, one module per upstream name: a pure plan and a thin shell each.
//!
//! Each module has a `descriptor()`: a row of the table that [`reconcile::run_all`] runs. Shells register
//! handlers, observe caches, ask the plan and act; plans are functions over values.
//!
//! **Invariant:** controllers know nothing of each other's state and talk only through the API.

use std::sync::Arc;

use reconcile::Descriptor;

pub mod attachdetach;
pub mod bootstrap;
pub mod certificates;
pub mod clusterroleaggregation;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod devicetainteviction;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslicemirroring;
pub mod ephemeral;
mod follow;
pub mod garbagecollector;
mod history;
pub mod job;
pub mod local_path;
pub mod namespace;
pub mod nodelifecycle;
mod owners;
pub mod persistentvolume;
pub mod podgc;
mod pods;
pub mod protection;
pub mod replicaset;
pub mod resourceclaim;
pub mod resourcequota;
pub mod root_ca;
pub mod serviceaccount;
pub mod snapshot;
pub mod statefulset;
pub mod tainteviction;
pub mod tokens;
pub mod ttlafterfinished;
pub mod vacprotection;

/// What the controllers need to know besides the API.
#[derive(Clone, Default)]
pub struct Options {
    /// PEM of the certificate authority that pods trust the API server by; without it none is published.
    pub root_ca: Option<Arc<str>>,
    /// Signs certificate requests; without it nobody does.
    pub signer: Option<Arc<dyn certificates::Signer>>,
    /// Issues the tokens of Secrets; without it none get any.
    pub tokens: Option<Arc<dyn tokens::Issuer>>,
    /// Where volumes of the class `local-path` are made; without it none are.
    pub local_storage: Option<local_path::Place>,
}

/// The table of controllers, for [`reconcile::run_all`].
pub fn descriptors(options: &Options) -> Vec<Descriptor> {
    let mut table = vec![
        attachdetach::descriptor(),
        bootstrap::signer::descriptor(),
        bootstrap::cleaner::descriptor(),
        certificates::approving::descriptor(),
        certificates::cleaner::descriptor(),
        clusterroleaggregation::descriptor(),
        cronjob::descriptor(),
        daemonset::descriptor(),
        deployment::descriptor(),
        devicetainteviction::descriptor(),
        disruption::descriptor(),
        endpoints::descriptor(),
        endpointslice::descriptor(),
        ephemeral::descriptor(),
        endpointslicemirroring::descriptor(),
        garbagecollector::descriptor(),
        job::descriptor(),
        namespace::descriptor(),
        nodelifecycle::descriptor(),
        persistentvolume::descriptor(),
        persistentvolume::expand::descriptor(),
        podgc::descriptor(),
        protection::claims_descriptor(),
        protection::volumes_descriptor(),
        replicaset::descriptor(),
        replicaset::replication_controller_descriptor(),
        resourceclaim::descriptor(),
        resourcequota::descriptor(),
        serviceaccount::descriptor(),
        statefulset::descriptor(),
        tainteviction::descriptor(),
        ttlafterfinished::descriptor(),
        vacprotection::descriptor(),
    ];
    if let Some(place) = &options.local_storage {
        table.push(local_path::descriptor(place.clone()));
        table.push(local_path::snapshots::descriptor(place.clone()));
        // The kinds of snapshots come with the class of local volumes.
        table.push(snapshot::descriptor());
    }
    table.extend(options.root_ca.clone().map(root_ca::descriptor));
    table.extend(options.root_ca.clone().map(certificates::trust::descriptor));
    table.extend(options.signer.clone().map(certificates::signing::descriptor));
    let tokens = options.tokens.clone().zip(options.root_ca.clone());
    table.extend(tokens.map(|(issuer, ca)| tokens::descriptor(issuer, ca)));
    table
}
