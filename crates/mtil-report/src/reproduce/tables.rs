//! Definitions of the tables: methods, suite, task orders and seeds.

/// Task orders in which a suite is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orders {
    /// The suite's own order.
    AsGiven,
    /// Every cyclic shift of the suite's order, so that each task is the first one once.
    CyclicShifts,
    /// This order of task indices.
    Permuted(&'static [usize]),
}

impl Orders {
    /// Returns the orders of `tasks` tasks as lists of task indices. Shift `k` starts with task
    /// `k`.
    ///
    /// # Example
    /// ```
    /// use mtil_report::reproduce::Orders;
    ///
    /// let orders = Orders::CyclicShifts.permutations(3);
    /// assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
    /// ```
    pub fn permutations(self, tasks: usize) -> Vec<Vec<usize>> {
        let shifts = match self {
            Self::AsGiven => 1,
            Self::CyclicShifts => tasks,
            Self::Permuted(order) => return vec![order.to_vec()],
        };
        (0..shifts)
            .map(|k| (0..tasks).map(|i| (k + i) % tasks).collect())
            .collect()
    }
}

/// Definition of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSpec {
    /// Name on the command line.
    pub name: &'static str,
    /// Description in one line.
    pub about: &'static str,
    /// Name of the suite.
    pub suite: &'static str,
    /// Task orders.
    pub orders: Orders,
    /// Methods to run, in the order of the rows.
    pub methods: &'static [&'static str],
    /// Methods shown with their published figures only, after the others.
    pub cited: &'static [&'static str],
    /// Seeds of the runs.
    pub seeds: &'static [u64],
    /// Adds a row with the published settings for each method that has tuned settings.
    pub published_settings: bool,
}

/// Methods of ZSCL's tables (ICCV 2023, `mtil/results.ipynb`), its successor with public code, and
/// GNSP with its ablations.
const ALL: &[&str] = &[
    "zero-shot",
    "finetune-per-task",
    "finetune",
    "lwf",
    "icarl",
    "lwf-vr",
    "wise-ft",
    "zscl-star",
    "zscl",
    "moe-adapters",
    "cd",
    "map",
    "cd-map",
    "null-space",
    "gnsp",
    "gnsp-update",
];

/// All built-in methods.
const BUILT_IN: &[&str] = &[
    "zero-shot",
    "finetune",
    "finetune-per-task",
    "joint",
    "wc",
    "ewc",
    "we",
    "we-wise",
    "wise-ft",
    "lwf",
    "lwf-vr",
    "icarl",
    "er",
    "zscl",
    "zscl-star",
    "zscl-minus",
    "zscl-minus-wc",
    "zscl-wise",
    "zscl-wc-wise",
    "gift",
    "gnsp",
    "gnsp-update",
    "gnsp-anchored",
    "cd",
    "map",
    "cd-map",
    "null-space",
    "gpm",
    "adam-nscl",
    "lora",
    "lora-per-task",
    "keeplora",
    "keeplora-input",
    "nusa-cl",
    "inflora",
    "osf",
    "osf-update",
    "codyra",
    "codyra-soft",
    "condu",
    "condu-lora",
    "moe-adapters",
    "rail-primal",
    "rail-dual",
];

/// The pretrained model and ten methods of different kinds.
const TEN: &[&str] = &[
    "zero-shot",
    "finetune",
    "wise-ft",
    "lwf",
    "er",
    "zscl",
    "gnsp",
    "gnsp-update",
    "gnsp-anchored",
    "lora",
    "moe-adapters",
];

const TABLES: &[TableSpec] = &[
    TableSpec {
        name: "table1",
        about: "MTIL, order I: the baselines of ZSCL, and GNSP with its ablations",
        suite: "mtil-order-1",
        orders: Orders::AsGiven,
        methods: ALL,
        cited: &["leba"],
        seeds: &[42],
        published_settings: false,
    },
    TableSpec {
        name: "table2",
        about: "MTIL, order II: the same methods",
        suite: "mtil-order-2",
        orders: Orders::AsGiven,
        methods: ALL,
        cited: &["leba"],
        seeds: &[42],
        published_settings: false,
    },
    TableSpec {
        name: "mini",
        about: "The embedded suite: all methods, with tuned and with published settings",
        suite: "mini",
        orders: Orders::AsGiven,
        methods: BUILT_IN,
        cited: &[],
        seeds: &[42, 43, 44],
        published_settings: true,
    },
    TableSpec {
        name: "mini-reversed",
        about: "The embedded suite in reverse order: ten methods",
        suite: "mini",
        orders: Orders::Permuted(&[7, 6, 5, 4, 3, 2, 1, 0]),
        methods: TEN,
        cited: &[],
        seeds: &[42, 43, 44],
        published_settings: false,
    },
    TableSpec {
        name: "mini-mixed",
        about: "The embedded suite in a random order: ten methods",
        suite: "mini",
        orders: Orders::Permuted(&[4, 2, 7, 0, 5, 1, 6, 3]),
        methods: TEN,
        cited: &[],
        seeds: &[42, 43, 44],
        published_settings: false,
    },
    TableSpec {
        name: "mini-conflict",
        about: "Conflicting tasks, with half of the class names permuted: ten methods",
        suite: "conflict-permuted:0.5",
        orders: Orders::AsGiven,
        methods: TEN,
        cited: &[],
        seeds: &[42, 43, 44],
        published_settings: false,
    },
    TableSpec {
        name: "orders",
        about: "The embedded suite in all cyclic shifts of its order",
        suite: "mini",
        orders: Orders::CyclicShifts,
        methods: &["zero-shot", "finetune", "cd-map", "gnsp", "gnsp-update"],
        cited: &[],
        seeds: &[42],
        published_settings: false,
    },
];

/// Returns all tables.
pub fn tables() -> &'static [TableSpec] {
    TABLES
}

/// Returns the table with the given name.
pub fn spec(name: &str) -> Option<&'static TableSpec> {
    TABLES.iter().find(|t| t.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::published;

    #[test]
    fn tables_hold_every_published_row_once() {
        for name in ["table1", "table2"] {
            let table = spec(name).unwrap();
            for row in &published(table.suite).unwrap().rows {
                let shown = table.methods.iter().chain(table.cited);
                assert_eq!(
                    shown.filter(|m| **m == row.method).count(),
                    1,
                    "{}",
                    row.method
                );
            }
        }
        assert!(spec("table3").is_none());
        for (i, table) in tables().iter().enumerate() {
            assert!(tables()[..i].iter().all(|t| t.name != table.name));
            assert!(!table.seeds.is_empty() && !table.methods.is_empty());
            for (j, method) in table.methods.iter().enumerate() {
                assert!(!table.methods[..j].contains(method), "{method}");
                assert!(!table.cited.contains(method), "{method}");
            }
        }
    }

    #[test]
    fn the_table_of_the_embedded_suite_has_all_built_in_methods() {
        assert_eq!(spec("mini").unwrap().methods, mtil_engine::method::names());
    }

    #[test]
    fn shifts_start_with_every_task_once() {
        assert_eq!(Orders::AsGiven.permutations(3), [[0, 1, 2]]);
        assert_eq!(
            Orders::CyclicShifts.permutations(3),
            [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
        );
        assert_eq!(Orders::Permuted(&[2, 0, 1]).permutations(3), [[2, 0, 1]]);
    }
}
