//! `callboard kernel branch`: a new kernel that begins with a state of another one.

use std::time::Duration;

use callboard_client::Client;
use callboard_protocol::{
    KernelId,
    control::{Origin, StartKernel},
    history::GetManifest,
};
use tokio::time::{Instant, sleep};

use crate::{
    context::Context,
    exit::{Exit, Failure, Outcome},
    output::say,
};

/// How long a new kernel may take to have its first state; a large one goes on after that.
const BEGUN_WITHIN: Duration = Duration::from_secs(60);
/// Pause between looks at it.
const POLL: Duration = Duration::from_millis(100);

/// Runs the verb.
///
/// # Errors
/// A [`Failure`] if there is no such kernel or state, or the new one does not get it.
pub async fn run(
    context: &Context,
    kernel: &str,
    at: Option<String>,
    name: Option<String>,
) -> Outcome {
    let (client, spec) = context.find(kernel).await?;
    // In a form that means the same later, and refused here if it is not kept.
    let state = client.kernel(spec.kernel).manifest(&GetManifest { at, skip: 0 }).await?;
    let fresh = KernelId::generate();
    let origin = Origin::Kernel { kernel: spec.kernel, at: state.at };
    let request = StartKernel {
        kernel: fresh,
        name,
        replicas: spec.replicas_wanted,
        options: spec.options,
        origin: Some(origin),
        settings: Default::default(),
    };
    let started = client.control().start_kernel(&request).await?;
    wait_begun(&client, fresh).await?;
    say(&format!("it has the state after cell {} of kernel {}", state.cell, spec.kernel));
    context.printer.data(&started, |spec| spec.kernel.to_string())?;
    Ok(Exit::Ok)
}

/// Returns once a kernel has the state it is to begin with.
///
/// # Errors
/// A [`Failure`] that says what it waits for.
pub async fn wait_begun(client: &Client, kernel: KernelId) -> Result<(), Failure> {
    let until = Instant::now() + BEGUN_WITHIN;
    loop {
        let why = match client.kernel(kernel).show().await {
            Ok(status) => match status.waits_for {
                None => return Ok(()),
                Some(why) => why,
            },
            Err(fault) => fault.message,
        };
        if Instant::now() >= until {
            let text = format!(
                "kernel {kernel} exists but has not begun after {} s: {why}; see `callboard kernel \
                 show {kernel}`, or end it with `callboard kernel stop {kernel}`",
                BEGUN_WITHIN.as_secs()
            );
            return Err(Failure::new(Exit::Unavailable, text));
        }
        sleep(POLL).await;
    }
}
