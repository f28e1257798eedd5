//! Which methods, suites and seeds make up which table.

/// In which orders a suite is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orders {
    /// As the suite says.
    AsGiven,
    /// Every cyclic shift of the suite's order: each task is the first one once.
    CyclicShifts,
    /// In this order of task indices.
    Permuted(&'static [usize]),
}

impl Orders {
    /// The orders as task indices: of `tasks` tasks, shift `k` starts with task `k`.
    pub fn of(self, tasks: usize) -> Vec<Vec<usize>> {
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

/// A table that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSpec {
    /// What it is called on the command line.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// The suite.
    pub suite: &'static str,
    /// In which orders it is learned.
    pub orders: Orders,
    /// The methods to run, in the order of the rows.
    pub methods: &'static [&'static str],
    /// Methods shown with their published figures only, after the others.
    pub cited: &'static [&'static str],
    /// Seeds of the runs.
    pub seeds: &'static [u64],
    /// Whether each method that has tuned settings gets a row with its published ones too.
    pub published_settings: bool,
}

/// The rows of ZSCL's tables (ICCV 2023, `mtil/results.ipynb`), its successor with public code, and
/// GNSP with its parts.
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

/// Every method that comes with the program.
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
        about: "MTIL, order I: the baselines of ZSCL, and GNSP with its parts",
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
        about: "The embedded suite: every method, tuned and as in its paper",
        suite: "mini",
        orders: Orders::AsGiven,
        methods: BUILT_IN,
        cited: &[],
        seeds: &[42, 43, 44],
        published_settings: true,
    },
    TableSpec {
        name: "mini-reversed",
        about: "The embedded suite from its last task to its first: ten methods",
        suite: "mini",
        orders: Orders::Permuted(&[7, 6, 5, 4, 3, 2, 1, 0]),
        methods: TEN,
        cited: &[],
        seeds: &[42, 43, 44],
        published_settings: false,
    },
    TableSpec {
        name: "mini-mixed",
        about: "The embedded suite in an order drawn by lot: ten methods",
        suite: "mini",
        orders: Orders::Permuted(&[4, 2, 7, 0, 5, 1, 6, 3]),
        methods: TEN,
        cited: &[],
        seeds: &[42, 43, 44],
        published_settings: false,
    },
    TableSpec {
        name: "mini-conflict",
        about: "Pictures whose classes change their names, half of them: ten methods",
        suite: "conflict-permuted:0.5",
        orders: Orders::AsGiven,
        methods: TEN,
        cited: &[],
        seeds: &[42, 43, 44],
        published_settings: false,
    },
    TableSpec {
        name: "orders",
        about: "The embedded suite in every cyclic shift of its order",
        suite: "mini",
        orders: Orders::CyclicShifts,
        methods: &["zero-shot", "finetune", "cd-map", "gnsp", "gnsp-update"],
        cited: &[],
        seeds: &[42],
        published_settings: false,
    },
];

/// All tables.
pub fn tables() -> &'static [TableSpec] {
    TABLES
}

/// The table of a name.
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
    fn the_table_of_the_embedded_suite_has_every_method() {
        assert_eq!(spec("mini").unwrap().methods, mtil_engine::method::names());
    }

    #[test]
    fn shifts_start_with_every_task_once() {
        assert_eq!(Orders::AsGiven.of(3), [[0, 1, 2]]);
        assert_eq!(
            Orders::CyclicShifts.of(3),
            [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
        );
        assert_eq!(Orders::Permuted(&[2, 0, 1]).of(3), [[2, 0, 1]]);
    }
}
