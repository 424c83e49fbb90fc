//! The machinery every control loop shares: informers, indexes, work queues, event recorder, leader
//! election, and the table of loops with its supervisor.
//!
//! The flow: [`Informers`] keep one cache per resource in step with the API server and tell handlers what
//! changed; handlers put keys into a [`WorkQueue`]; the workers of a [`Controller`] take keys out and
//! reconcile; what they did goes through the [`Recorder`]. Nothing polls: events and timers wake everything.
//!
//! **Invariant:** knows nothing of any one kind (but the kinds it writes itself: Event and Lease).

pub mod cached;
pub mod controller;
pub mod correlate;
pub mod expectations;
pub mod informer;
pub mod informers;
pub mod leader;
pub mod metrics;
pub mod queue;
pub mod recorder;
pub mod reflector;
pub mod store;

pub use cached::Cached;
pub use controller::{
    Action, Context, ControlError, Controller, Descriptor, Reconcile, RunError, controller_user, run_all,
};
pub use expectations::Expectations;
pub use informer::{Event, Informer};
pub use informers::{Informers, Scope};
pub use leader::{LeaderConfig, LeaderElector};
pub use queue::{Key, QueueStats, WorkQueue};
pub use recorder::{EventSink, EventType, Recorder, object_reference};
pub use store::{IndexFn, Store, index_by_controller, index_by_namespace, split_key};
