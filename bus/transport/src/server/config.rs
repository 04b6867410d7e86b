//! The broker's configuration file. nats-server reads JSON, which needs no quoting rules of ours.

use serde_json::{Value, json};

use super::{BrokerOptions, state::State};

/// Size at which the log is rotated, in bytes, and how many old ones are kept.
const LOG_SIZE_MAX: u64 = 8 * 1024 * 1024;
const LOG_FILES_MAX: u64 = 3;

pub(super) fn render(options: &BrokerOptions, state: &State) -> Value {
    let users: Vec<Value> = options
        .users
        .iter()
        .map(|user| {
            json!({
                "user": user.name,
                "password": user.password,
                "permissions": {
                    "publish": { "allow": user.publish },
                    "subscribe": { "allow": user.subscribe },
                },
            })
        })
        .collect();
    let mut config = json!({
        "server_name": state.server_name,
        "listen": format!("{}:{}", options.host, state.port),
        "http": format!("127.0.0.1:{}", state.monitor_port),
        "max_payload": options.max_payload,
        // A client that vanished without a word is forgotten after about fifteen seconds.
        "ping_interval": "5s",
        "ping_max": 2,
        "log_file": options.data_dir.join("broker.log"),
        "log_size_limit": LOG_SIZE_MAX,
        "log_max_num": LOG_FILES_MAX,
        "authorization": { "timeout": 5, "users": users },
    });
    if options.jetstream {
        // Acknowledged means synced: the default acknowledges before.
        config["jetstream"] =
            json!({ "store_dir": options.data_dir.join("jetstream"), "sync_interval": "always" });
    }
    config
}
