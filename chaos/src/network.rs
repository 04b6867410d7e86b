//! A network of the run's own: a bridge the broker listens on, and a network namespace per node,
//! linked to it by a cable that can be pulled.
//!
//! Owns the bridge, the namespaces and the cables, whose names carry the run's mark; dropping it
//! removes them. Needs root and iproute2.

use std::{io, process::Command};

use nix::unistd::Uid;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::error::ChaosError;

/// Longest name of a network interface that Linux takes is 15 bytes: `cb`, 8 of the mark, 5 left.
const MARK_LENGTH: usize = 8;

/// The network. Names: bridge `cb<mark>`, cables `cb<mark>v<n>`, namespaces `cb<mark>-node-<n>`.
#[derive(Debug)]
pub struct Network {
    mark: String,
    subnet: [u8; 3],
    nodes: u16,
}

/// What this machine lacks for network namespaces; `None` if it can make them.
#[must_use]
pub fn problem() -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("partition trials need root and iproute2: this user is not root".to_owned());
    }
    match Command::new("ip").arg("-V").output() {
        Ok(_) => None,
        Err(error) => Some(format!(
            "partition trials need root and iproute2: `ip` cannot be run ({error}); on Debian, `apt-get install iproute2`"
        )),
    }
}

impl Network {
    /// Makes bridge, namespaces and cables for nodes 1 to `nodes`.
    ///
    /// # Errors
    /// [`ChaosError::Command`]; what was made until then is removed.
    pub fn create(seed: u64, nodes: u16) -> Result<Self, ChaosError> {
        let unique = seed ^ u64::from(std::process::id()).rotate_left(32);
        let mut rng = StdRng::seed_from_u64(unique);
        let mut mark = format!("{:016x}", rng.random::<u64>());
        mark.truncate(MARK_LENGTH);
        let network = Self { mark, subnet: [10, rng.random_range(128..=254), rng.random()], nodes };
        network.make()?;
        Ok(network)
    }

    fn make(&self) -> Result<(), ChaosError> {
        let bridge = self.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["address", "add", &format!("{}/24", self.broker_host()), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for node in 1..=self.nodes {
            let (space, cable) = (self.namespace(&format!("node-{node}")), self.cable(node));
            ip(&["netns", "add", &space])?;
            let peer = ["peer", "name", "eth0", "netns", &space];
            ip(&[&["link", "add", &cable, "type", "veth"][..], &peer].concat())?;
            ip(&["link", "set", &cable, "master", &bridge, "up"])?;
            let address = format!("{}/24", self.address(u8::try_from(node).unwrap_or(0) + 10));
            ip(&["-n", &space, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    /// The address the broker listens on.
    #[must_use]
    pub fn broker_host(&self) -> String {
        self.address(1)
    }

    /// What stands before a node's command line; `{node}` is its id.
    #[must_use]
    pub fn launcher(&self) -> String {
        format!("ip netns exec {}", self.namespace("{node}"))
    }

    /// Pulls the cable of `node`: packets vanish, no connection is told.
    ///
    /// # Errors
    /// [`ChaosError::Command`].
    pub fn cut(&self, node: u16) -> Result<(), ChaosError> {
        ip(&["link", "set", &self.cable(node), "nomaster"])
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// [`ChaosError::Command`].
    pub fn heal(&self, node: u16) -> Result<(), ChaosError> {
        ip(&["link", "set", &self.cable(node), "master", &self.bridge()])
    }

    fn bridge(&self) -> String {
        format!("cb{}", self.mark)
    }

    fn cable(&self, node: u16) -> String {
        format!("cb{}v{node}", self.mark)
    }

    fn namespace(&self, node: &str) -> String {
        format!("cb{}-{node}", self.mark)
    }

    fn address(&self, host: u8) -> String {
        let [a, b, c] = self.subnet;
        format!("{a}.{b}.{c}.{host}")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 1..=self.nodes {
            // What was never made cannot be removed; nobody is left to be told of the rest.
            let _ = ip(&["link", "delete", &self.cable(node)]);
            let _ = ip(&["netns", "delete", &self.namespace(&format!("node-{node}"))]);
        }
        let _ = ip(&["link", "delete", &self.bridge()]);
    }
}

fn ip(arguments: &[&str]) -> Result<(), ChaosError> {
    let fail =
        |why: String| ChaosError::Command { command: format!("ip {}", arguments.join(" ")), why };
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(|error: io::Error| fail(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
