//! What no scheduler can go below, and what reservation holds, from the trace alone.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use serde::Serialize;

use crate::{
    metrics::Window,
    trace::{SessionIndex, Task, Trace, TraceError},
};

/// GPU-hours of a trace within a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Bounds {
    /// In which tasks ran.
    pub used: f64,
    /// Whole nodes for what is in use at each moment: the integral of ⌈in use / n⌉ × n.
    pub floor: f64,
    /// Held from each session's first task to its last.
    pub reserved: f64,
}

const HOUR_MS: f64 = 3_600_000.0;

/// Follows what is in use over time. Sessions are read when they open.
struct Sweep<'a> {
    trace: &'a Trace,
    gpus: u64,
    windows: &'a [Window],
    in_use: u64,
    at_ms: u64,
    bounds: Vec<Bounds>,
    follow: &'a mut dyn FnMut(u64, u64, u64),
}

impl Sweep<'_> {
    fn advance(&mut self, to_ms: u64) {
        let to_ms = to_ms.min(self.trace.horizon_ms);
        if to_ms <= self.at_ms {
            return;
        }
        let nodes = self.in_use.div_ceil(self.gpus);
        (self.follow)(self.at_ms, self.in_use, nodes);
        for (window, bounds) in self.windows.iter().zip(&mut self.bounds) {
            let hours = window.overlap_ms(self.at_ms, to_ms) as f64 / HOUR_MS;
            bounds.used += hours * self.in_use as f64;
            bounds.floor += hours * (nodes * self.gpus) as f64;
        }
        self.at_ms = to_ms;
    }
}

/// The bounds of each window; `follow` is told (time, GPUs in use, nodes) at every change.
///
/// # Errors
/// [`TraceError`] if the trace cannot be read any more.
pub fn bounds(
    trace: &Trace,
    gpus_of_a_node: u32,
    windows: &[Window],
    follow: &mut dyn FnMut(u64, u64, u64),
) -> Result<Vec<Bounds>, TraceError> {
    let gpus = u64::from(gpus_of_a_node.max(1));
    let bounds = vec![Bounds::default(); windows.len()];
    let mut sweep = Sweep { trace, gpus, windows, in_use: 0, at_ms: 0, bounds, follow };
    let mut unopened: VecDeque<&SessionIndex> = trace.sessions.iter().collect();
    let mut open: Vec<VecDeque<Task>> = Vec::new();
    // Ends come before submissions at the same moment.
    let mut events: BinaryHeap<Reverse<(u64, Event)>> = BinaryHeap::new();
    loop {
        let next_ms = events.peek().map_or(u64::MAX, |it| it.0.0);
        if unopened.front().is_some_and(|it| it.first_ms <= next_ms) {
            let Some(session) = unopened.pop_front() else { continue };
            let tasks: VecDeque<Task> = trace.tasks_of(session)?.into();
            let last_ms = session.last_ms.min(trace.horizon_ms);
            for (window, bounds) in windows.iter().zip(&mut sweep.bounds) {
                let hours = window.overlap_ms(session.first_ms, last_ms) as f64 / HOUR_MS;
                bounds.reserved += hours * f64::from(session.gpus);
            }
            if let Some(task) = tasks.front() {
                let place = open.iter().position(VecDeque::is_empty).unwrap_or(open.len());
                events.push(Reverse((task.submit_ms, Event::Submit(place))));
                if place == open.len() {
                    open.push(tasks);
                } else {
                    open[place] = tasks;
                }
            }
            continue;
        }
        let Some(Reverse((at_ms, event))) = events.pop() else { break };
        sweep.advance(at_ms);
        match event {
            Event::End(gpus) => sweep.in_use -= u64::from(gpus),
            Event::Submit(place) => {
                let Some(task) = open[place].pop_front() else { continue };
                sweep.in_use += u64::from(task.gpus);
                events.push(Reverse((at_ms + task.duration_ms, Event::End(task.gpus))));
                if let Some(next) = open[place].front() {
                    events.push(Reverse((next.submit_ms, Event::Submit(place))));
                }
            }
        }
    }
    sweep.advance(trace.horizon_ms);
    Ok(sweep.bounds)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    End(u32),
    Submit(usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::MINUTE_MS;

    #[test]
    fn a_task_of_one_gpu_fills_a_node_and_a_pause_is_reserved() {
        let task = |submit: u64, duration: u64, gpus| Task {
            submit_ms: submit * MINUTE_MS,
            duration_ms: duration * MINUTE_MS,
            gpus,
        };
        let trace = Trace::of(
            vec![(1, vec![task(0, 60, 1), task(180, 60, 1)]), (2, vec![task(30, 30, 8)])],
            240 * MINUTE_MS,
        );
        let window = Window { from_ms: 0, to_ms: trace.horizon_ms };
        let found = bounds(&trace, 8, &[window], &mut |_, _, _| {}).unwrap()[0];
        assert!((found.used - 6.0).abs() < 1e-9);
        assert!((found.floor - (4.0 + 8.0 + 8.0)).abs() < 1e-9);
        assert!((found.reserved - (4.0 + 4.0)).abs() < 1e-9);
    }
}
