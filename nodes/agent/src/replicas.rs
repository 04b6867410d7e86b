//! What the agent needs of a replica actor, so that tests can put a small one in its place.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use callboard_protocol::{
    KernelId, NodeId, ReplicaId,
    control::KernelSpec,
    node::{Asleep, PythonStock},
};
use callboard_runtime::ChildSpec;

/// A member of a kernel's group.
pub type MemberKey = (KernelId, ReplicaId);

/// Makes replica actors.
pub trait ReplicaFactory: Send + Sync + 'static {
    /// A child named `name` that runs `replica` of the kernel; on every restart it is given the
    /// entry that `spec` then holds.
    fn child(
        &self,
        name: &str,
        spec: SharedSpec,
        replica: ReplicaId,
    ) -> (ChildSpec, Arc<dyn ReplicaHandle>);

    /// No member of the kernel is left here, and with `is_stopped` nowhere: removes what is its own
    /// on this node beside its log.
    fn forget(&self, _kernel: KernelId, _is_stopped: bool) {}

    /// Limits that cannot be enforced here, each as a sentence.
    fn unenforced(&self) -> Vec<String> {
        Vec::new()
    }

    /// Cells that run on this node now.
    fn running_cells(&self) -> u32;

    /// Replicas that sleep on this node now.
    fn asleep(&self) -> Asleep {
        Asleep::default()
    }

    /// The node's stock of Python processes.
    fn python_stock(&self) -> PythonStock {
        PythonStock::default()
    }
}

/// A replica actor that runs, or is being restarted.
#[async_trait]
pub trait ReplicaHandle: Send + Sync + 'static {
    /// The kernel's entry changed.
    fn spec_changed(&self, spec: KernelSpec);

    /// Ends it in order, with `purge` for good; returns when it is done or takes too long.
    async fn stop(&self, purge: bool);

    /// Kills its Python process.
    fn kill_python(&self);

    /// Kills the actor; its supervisor starts it again.
    fn kill(&self);
}

/// The entry of a kernel as last seen, for the next restart of its replica.
#[derive(Debug, Clone)]
pub struct SharedSpec(Arc<Mutex<KernelSpec>>);

impl SharedSpec {
    /// Holds `spec`.
    #[must_use]
    pub fn new(spec: KernelSpec) -> Self {
        Self(Arc::new(Mutex::new(spec)))
    }

    /// The entry as last seen.
    #[must_use]
    pub fn get(&self) -> KernelSpec {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).version
    }

    /// A newer entry.
    pub fn set(&self, spec: KernelSpec) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = spec;
    }
}

/// The replicas that run on this node, for whoever has to reach one. The keeper writes it.
#[derive(Clone, Default)]
pub struct Roster(Arc<Mutex<BTreeMap<MemberKey, Arc<dyn ReplicaHandle>>>>);

impl Roster {
    /// One of them.
    #[must_use]
    pub fn get(&self, key: &MemberKey) -> Option<Arc<dyn ReplicaHandle>> {
        self.lock().get(key).cloned()
    }

    /// How many they are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which they are.
    #[must_use]
    pub fn keys(&self) -> Vec<MemberKey> {
        self.lock().keys().copied().collect()
    }

    pub(crate) fn insert(&self, key: MemberKey, handle: Arc<dyn ReplicaHandle>) {
        self.lock().insert(key, handle);
    }

    pub(crate) fn remove(&self, key: &MemberKey) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MemberKey, Arc<dyn ReplicaHandle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to say to someone who names a replica that is not here.
    pub(crate) fn missing(&self, node: &NodeId, (kernel, replica): MemberKey) -> String {
        format!(
            "{node} runs no member {replica} of kernel {kernel}: \
             see `callboard kernel show {kernel}` for who runs where"
        )
    }
}
