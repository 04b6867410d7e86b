//! Nodes with unequal Python environments: what a session imports decides where it may be.
//!
//! Reproduce: `make setup && cargo test -p callboard-cli --test environment`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the support of all cluster tests; this one needs a part")]

mod support;

use std::{fs, path::Path};

use support::{Cluster, wait_until};

/// A Python that sees the packages below `CB_SITES/<node>`, and a configuration that uses it.
fn unequal_nodes(place: &Path) -> String {
    for node in ["node-1", "node-2", "node-4"] {
        let site = place.join(node);
        fs::create_dir_all(site.join("thing-1.0.dist-info")).unwrap();
        fs::write(site.join("thing-1.0.dist-info/RECORD"), "thing.py,,\n").unwrap();
        fs::write(site.join("thing.py"), "x = 1\n").unwrap();
    }
    let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python");
    let program = place.join("python");
    let script = format!(
        "#!/bin/sh\nPYTHONPATH=\"$PYTHONPATH:{}/$CB_NODE\" exec {} \"$@\"\n",
        place.display(),
        real.display()
    );
    fs::write(&program, script).unwrap();
    support::make_executable(&program);
    let config = place.join("cluster.toml");
    let text = format!(
        "nodes = 4\nnode_launcher = \"env CB_NODE={{node}}\"\npython_program = \"{}\"\n",
        program.display()
    );
    fs::write(&config, text).unwrap();
    config.to_str().unwrap().to_owned()
}

fn members(cluster: &Cluster, kernel: &str) -> Vec<String> {
    let replicas = cluster.show(kernel)["spec"]["replicas"].clone();
    let nodes = replicas.as_object().unwrap().values();
    nodes.map(|it| it["node"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_member_leaves_a_node_that_lacks_what_the_session_imported() {
    let place = tempfile::tempdir().unwrap();
    let config = unequal_nodes(place.path());
    let cluster = Cluster::start(&["--config", &config]);
    // Four nodes for three members: one of two kernels has a member on the node that differs.
    let name = ["a", "b"]
        .into_iter()
        .find(|name| {
            cluster.start_kernel(name);
            members(&cluster, name).contains(&"node-3".to_owned())
        })
        .expect("node-3 is the least loaded for the second kernel");
    // The import has to work where the session runs, so it is moved off node-3 if it is there.
    while support::executor_node(&cluster, name) == "node-3" {
        cluster.kill_node("node-3");
        cluster.exec(name, "pass").prints("");
    }
    cluster.exec(name, "import thing; thing.x").prints("1\n");
    wait_until("the member has moved", || {
        let now = members(&cluster, name);
        now.len() == 3 && !now.contains(&"node-3".to_owned())
    });
    let shown = cluster.run(&["kernel", "show", name]).stdout;
    assert!(shown.contains("imports    Python 3.") && shown.contains("thing 1.0"), "{shown}");
    let executor = support::executor_node(&cluster, name);
    cluster.kill_node(&executor);
    cluster.exec(name, "thing.x").prints("1\n");
}
