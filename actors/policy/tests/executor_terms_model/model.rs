//! The moves of the world, and what is asked of every state they lead to.

use callboard_policy::terms::{
    Input, PythonPhase, Upkeep,
    invariants::{self, CellFacts, Ending},
};
use callboard_protocol::{Term, kernel::Level};
use stateright::{Model, Property};

use super::{
    proposal::Proposal,
    rules::Rules,
    world::{Grain, REPLICAS, Replica, World},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Move {
    /// A proposal under way is committed; it stays under way.
    Commit(Proposal),
    /// A replica applies so many entries in one go.
    CatchUp(usize, usize),
    /// A fresh Python process is ready.
    PythonReady(usize),
    /// The base is in the Python process.
    BaseRestored(usize),
    /// The running cell ends.
    CellFinished(usize),
    /// A user wants the state after so many steps back.
    Rewind(u64),
    /// Fault: a replica's node dies, with its Python process, and starts again.
    Restart(usize),
    /// Fault: the Python process dies.
    KillPython(usize),
    /// Fault: a replica wrongly believes that the executor is lost, and closes its term.
    Suspect(usize),
}

#[derive(Debug, Clone)]
pub(crate) struct TermsModel {
    pub(crate) rules: Rules,
    pub(crate) grain: Grain,
    pub(crate) faults: u8,
    pub(crate) upkeep: Upkeep,
    pub(crate) rewinds: u8,
    pub(crate) levels: Vec<[Level; 2]>,
}

impl TermsModel {
    fn progress(world: &World) -> impl Iterator<Item = Move> {
        let commits = world
            .under_way
            .iter()
            .filter(|proposal| world.can_commit(proposal))
            .map(|proposal| Move::Commit(proposal.clone()));
        let local = (0..REPLICAS).flat_map(|index| {
            let replica = &world.replicas[index];
            let lag = world.lag(index);
            let python = replica.executor.python();
            (1..=lag)
                .map(move |count| Move::CatchUp(index, count))
                .chain((python == PythonPhase::Starting).then_some(Move::PythonReady(index)))
                .chain(
                    matches!(python, PythonPhase::Restoring(_))
                        .then_some(Move::BaseRestored(index)),
                )
                .chain(replica.running().is_some().then_some(Move::CellFinished(index)))
        });
        commits.chain(local).collect::<Vec<_>>().into_iter()
    }

    /// A rewind to any earlier state, wherever one could take effect at once or soon.
    fn wishes(world: &World) -> impl Iterator<Item = Move> {
        let is_due = world.rewinds_left > 0 && world.head().pending().is_empty();
        (0..world.head().position()).filter(move |_| is_due).map(Move::Rewind)
    }

    fn faults(world: &World) -> Vec<Move> {
        let mut moves = Vec::new();
        if world.faults_left == 0 {
            return moves;
        }
        for index in (0..REPLICAS).filter(|index| world.is_involved(*index)) {
            moves.push(Move::Restart(index));
            if !matches!(
                world.replicas[index].executor.python(),
                PythonPhase::Absent | PythonPhase::Starting
            ) {
                moves.push(Move::KillPython(index));
            }
        }
        let suspecting = (0..REPLICAS).find(|index| {
            world.log_of(*index).open_term().is_some_and(|open| {
                open.replica != world.replicas[*index].identity.replica
                    && world.head().open_term() == Some(open)
                    && !world.under_way.contains(&Proposal::Abandon { term: open.term })
            })
        });
        moves.extend(suspecting.map(Move::Suspect));
        moves
    }
}

impl Model for TermsModel {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        let world = |levels: &[Level; 2]| {
            let mut world = World::new(self, *levels);
            world.rewinds_left = self.rewinds;
            world
        };
        self.levels.iter().map(world).collect()
    }

    fn actions(&self, world: &World, moves: &mut Vec<Move>) {
        moves.extend(Self::progress(world));
        moves.extend(Self::wishes(world));
        moves.extend(Self::faults(world));
    }

    fn next_state(&self, world: &World, action: Move) -> Option<World> {
        let mut world = world.clone();
        world.begin_move();
        match action {
            Move::Commit(proposal) => world.commit(proposal),
            Move::CatchUp(index, count) => world.catch_up(index, count),
            Move::PythonReady(index) => {
                world.input(index, Input::PythonWarm);
            }
            Move::BaseRestored(index) => world.restored(index),
            Move::CellFinished(index) => world.finish(index),
            Move::Rewind(to) => {
                world.rewinds_left -= 1;
                world.ask_for_rewind(to);
            }
            Move::Restart(index) => {
                world.faults_left -= 1;
                world.restart(index);
                world.suspect_the_gone();
            }
            Move::KillPython(index) => {
                world.faults_left -= 1;
                world.kill_python(index);
            }
            Move::Suspect(index) => {
                world.faults_left -= 1;
                world.suspect(index);
                // That it may be committed later, too, adds nothing: nothing sees it under way.
                let abandon = world.under_way.iter().find(|entry| is_abandon(entry)).cloned();
                world.commit(abandon?);
            }
        }
        world.end_move();
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = safety();
        properties.extend(reachable());
        if self.faults >= 2 {
            properties.push(Property::sometimes(TWO_FAILOVERS, |_, world: &World| {
                let ends = |cell: &CellFacts| cell.ends.contains(&(Ending::Completed, Term(3)));
                world.facts.cells.iter().any(ends)
            }));
        }
        if self.upkeep.park_after_ms.is_some() {
            properties.push(Property::sometimes(PARKED_BETWEEN, |_, world: &World| {
                let terms = [(Ending::Completed, Term(1)), (Ending::Completed, Term(2))];
                let ended_in = |term| world.facts.cells.iter().any(|cell| cell.ends.contains(term));
                terms.iter().all(ended_in)
            }));
        }
        if self.grain == Grain::Fine {
            properties.push(Property::sometimes(TWO_AT_ONCE, |_, world: &World| {
                let running = |replica: &&Replica| replica.running().is_some();
                world.replicas.iter().filter(running).count() == 2
            }));
        }
        if self.rewinds > 0 {
            properties.push(Property::sometimes(RUNS_ON_REWOUND, |_, world: &World| {
                world.facts.state == [1] && world.facts.undone == [0]
            }));
        }
        if self.rewinds > 1 {
            properties.push(Property::sometimes(REDONE, |_, world: &World| {
                world.facts.rewinds.iter().any(|it| it.given == [0, 1])
            }));
        }
        properties.push(Property::always("PROGRESS", |_, world| is_served_at_rest(world)));
        properties
    }
}

const TWO_FAILOVERS: &str = "a cell completes after two failovers";
const PARKED_BETWEEN: &str = "cells complete in two terms, one after the other";
const RUNS_ON_REWOUND: &str = "a cell completes on a state that was rewound";
const REDONE: &str = "a rewind is undone by another";
const TWO_AT_ONCE: &str = "two executors run code at the same moment";

macro_rules! always {
    ($($invariant:ident),* $(,)?) => {
        vec![$(Property::always(invariants::$invariant.id, |_, world: &World| {
            (invariants::$invariant.holds)(&world.facts)
        })),*]
    };
}

fn safety() -> Vec<Property<TermsModel>> {
    let properties = always![
        AT_MOST_ONCE,
        ACK_DURABLE,
        ONE_OUTCOME,
        REPLY_AFTER_APPLY,
        ONE_EXECUTOR,
        BASE,
        ORDER,
        INTERRUPTED_HAS_NO_STATE,
        NO_LOST_REQUEST,
        REWIND,
    ];
    assert_eq!(properties.len(), invariants::ALL.len(), "every invariant is checked");
    properties
}

fn is_abandon(proposal: &Proposal) -> bool {
    matches!(proposal, Proposal::Abandon { .. })
}

/// Guards against a model in which nothing happens.
fn reachable() -> Vec<Property<TermsModel>> {
    vec![
        Property::sometimes("both cells complete", |_, world: &World| world.facts.state.len() == 2),
        Property::sometimes("a cell is interrupted and the other completes", |_, world: &World| {
            let ends = |ending| {
                world.facts.cells.iter().any(|cell| cell.ends.iter().any(|end| end.0 == ending))
            };
            ends(Ending::Interrupted) && ends(Ending::Completed)
        }),
        Property::sometimes("a replica executes in its second life", |_, world: &World| {
            world
                .facts
                .cells
                .iter()
                .flat_map(|cell| &cell.starts)
                .any(|start| start.incarnation.0 > 1)
        }),
        Property::sometimes("a finished cell loses against an abandon", |_, world: &World| {
            world.facts.cells.iter().any(|cell| {
                cell.ends.iter().any(|end| end.0 == Ending::Interrupted)
                    && cell.told.iter().any(|told| told.ending == Ending::Completed)
            })
        }),
    ]
}

/// Where only a fault could still change anything, every cell has ended, and a live executor waits
/// for the next, or the kernel is parked.
fn is_served_at_rest(world: &World) -> bool {
    let all_ended = || world.facts.cells.iter().all(|cell| !cell.ends.is_empty());
    let is_served = || {
        world.head().open_term().is_some_and(|open| {
            world.replicas.iter().any(|replica| {
                replica.identity.replica == open.replica
                    && replica.identity.incarnation == open.incarnation
                    && replica.executor.python() == PythonPhase::Serving(open.term)
            })
        })
    };
    (all_ended() && (is_served() || world.head().is_parked()))
        || TermsModel::progress(world).next().is_some()
}
