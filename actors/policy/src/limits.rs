//! Which limits a kernel's processes have: what was asked for, within what the cluster allows.

use callboard_protocol::control::KernelLimits;

/// The tighter of each two limits.
#[must_use]
pub fn effective(asked: &KernelLimits, most: &KernelLimits) -> KernelLimits {
    fn tighter<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
        match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
    KernelLimits {
        memory_max_mib: tighter(asked.memory_max_mib, most.memory_max_mib),
        cpu_max_percent: tighter(asked.cpu_max_percent, most.cpu_max_percent),
        cell_wall_time_max_s: tighter(asked.cell_wall_time_max_s, most.cell_wall_time_max_s),
        processes_max: tighter(asked.processes_max, most.processes_max),
    }
}

/// A sentence if a kernel cannot have the limits it asks for.
#[must_use]
pub fn refusal(asked: &KernelLimits, most: &KernelLimits) -> Option<String> {
    let of_cpu = |limits: &KernelLimits| limits.cpu_max_percent.map(u64::from);
    let all = [
        ("memory_max_mib", asked.memory_max_mib, most.memory_max_mib),
        ("cpu_max_percent", of_cpu(asked), of_cpu(most)),
        ("cell_wall_time_max_s", asked.cell_wall_time_max_s, most.cell_wall_time_max_s),
        ("processes_max", asked.processes_max, most.processes_max),
    ];
    all.into_iter().find_map(|(name, asked, most)| match (asked, most) {
        (Some(0), _) => {
            Some(format!("{name} cannot be 0: leave it out for no limit of the kernel's own"))
        }
        (Some(asked), Some(most)) if asked > most => {
            Some(format!("{name} cannot be {asked}: the cluster's configuration allows {most}"))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_may_ask_for_less_and_not_for_more_than_the_cluster_allows() {
        let most = KernelLimits { memory_max_mib: Some(2048), ..KernelLimits::default() };
        let asked = KernelLimits {
            memory_max_mib: Some(512),
            cell_wall_time_max_s: Some(60),
            ..KernelLimits::default()
        };
        assert_eq!(refusal(&asked, &most), None);
        assert_eq!(effective(&asked, &most), asked);
        assert_eq!(effective(&KernelLimits::default(), &most), most);
        let more = KernelLimits { memory_max_mib: Some(4096), ..asked };
        let said = refusal(&more, &most).unwrap();
        assert_eq!(said, "memory_max_mib cannot be 4096: the cluster's configuration allows 2048");
        assert_eq!(effective(&more, &most).memory_max_mib, Some(2048));
        let none = KernelLimits { processes_max: Some(0), ..KernelLimits::default() };
        assert!(refusal(&none, &most).unwrap().contains("processes_max cannot be 0"));
    }
}
