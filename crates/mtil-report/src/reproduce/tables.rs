//! Definitions of the tables: methods, suite, task orders and seeds.

use super::published::{Published, published};
use mtil_data::datasets::mtil::SuiteProtocol;
use mtil_engine::method::{Method, names};

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

/// Methods of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Methods {
    /// These, in the order of the rows.
    Listed(&'static [&'static str]),
    /// These, then the other built-in methods with published figures, except those that need the
    /// task of a test image where the suite does not give it.
    WithPublished(&'static [&'static str]),
    /// All built-in methods.
    BuiltIn,
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
    /// Training images per class, if not those of the suite's protocol.
    pub shots: Option<usize>,
    /// One prompt template for all tasks, in place of their own.
    pub template: Option<&'static str>,
    /// Task orders.
    pub orders: Orders,
    /// Methods to run.
    pub methods: Methods,
    /// Settings of all methods, as `key=value`.
    pub settings: &'static [&'static str],
    /// File of the published figures, without `.toml`.
    pub published: Option<&'static str>,
    /// Seeds of the runs.
    pub seeds: &'static [u64],
    /// Adds a row with the published settings for each method that has tuned settings.
    pub published_settings: bool,
}

impl TableSpec {
    /// Returns the methods to run, in the order of the rows.
    pub fn methods(&self) -> Vec<&'static str> {
        match self.methods {
            Methods::Listed(methods) => methods.to_vec(),
            Methods::BuiltIn => names(),
            Methods::WithPublished(methods) => {
                let published = self.published();
                let is_published = |name: &&str| published.is_some_and(|p| p.row(name).is_some());
                let others = names().into_iter().filter(|name| !methods.contains(name));
                let others = others
                    .filter(is_published)
                    .filter(|name| self.can_run(name));
                methods.iter().copied().chain(others).collect()
            }
        }
    }

    /// Returns the published figures, if there are any.
    pub fn published(&self) -> Option<&'static Published> {
        published(self.published?)
    }

    /// Returns whether the suite gives a built-in method what it needs at test time.
    pub fn can_run(&self, method: &str) -> bool {
        let gives_task = SuiteProtocol::find(self.suite).is_none_or(|suite| suite.task_given);
        let needs_task = Method::load(method, self.suite, &[]).is_ok_and(|m| m.needs_task());
        gives_task || !needs_task
    }
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

/// Methods of X-TAIL's tables, and GNSP.
const XTAIL: &[&str] = &[
    "zero-shot",
    "finetune",
    "lwf",
    "icarl",
    "wise-ft",
    "zscl",
    "lora",
    "codyra",
    "rail-primal",
    "rail-dual",
    "gnsp",
    "gnsp-update",
];

/// Methods published with RAIL's template on X-TAIL.
const RAIL: &[&str] = &["zero-shot", "rail-primal", "rail-dual", "lada"];

/// Methods of 5-shot MTIL, and GNSP.
const FEW_SHOT: &[&str] = &[
    "zero-shot",
    "finetune",
    "lwf",
    "lwf-vr",
    "wise-ft",
    "zscl",
    "rail-primal",
    "codyra",
    "moe-adapters",
    "gnsp",
    "gnsp-update",
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

const MINI: TableSpec = TableSpec {
    name: "mini",
    about: "The embedded suite: all methods, with tuned and with published settings",
    suite: "mini",
    shots: None,
    template: None,
    orders: Orders::AsGiven,
    methods: Methods::BuiltIn,
    settings: &[],
    published: None,
    seeds: &[42, 43, 44],
    published_settings: true,
};

const MTIL: TableSpec = TableSpec {
    name: "table1",
    about: "MTIL, order I: the baselines of ZSCL, later methods, and GNSP with its ablations",
    suite: "mtil-order-1",
    methods: Methods::WithPublished(ALL),
    published: Some("mtil-order-1"),
    seeds: &[42],
    published_settings: false,
    ..MINI
};

const TABLES: &[TableSpec] = &[
    MTIL,
    TableSpec {
        name: "table2",
        about: "MTIL, order II: the same baselines",
        suite: "mtil-order-2",
        published: Some("mtil-order-2"),
        ..MTIL
    },
    TableSpec {
        name: "fewshot",
        about: "MTIL, order I, with five training images per class",
        shots: Some(5),
        methods: Methods::WithPublished(FEW_SHOT),
        // As in ConDU's scripts of this table (zhangzicong518/ConDU 7fd32cf).
        settings: &["steps=500"],
        published: Some("mtil-order-1-5-shot"),
        ..MTIL
    },
    TableSpec {
        name: "xtail",
        about: "X-TAIL, order I: ten datasets, 16 images per class, the task not given",
        suite: "xtail-order-1",
        methods: Methods::WithPublished(XTAIL),
        published: Some("xtail-order-1"),
        ..MTIL
    },
    TableSpec {
        name: "xtail2",
        about: "X-TAIL, order II: the same methods",
        suite: "xtail-order-2",
        methods: Methods::WithPublished(XTAIL),
        published: Some("xtail-order-2"),
        ..MTIL
    },
    TableSpec {
        name: "rail",
        about: "X-TAIL, order I, with one template for all datasets: RAIL and LADA as published",
        suite: "xtail-order-1",
        // RAIL `dual_RAIL.py:60`, LADA `trainer.py`.
        template: Some("a photo of a {}."),
        methods: Methods::Listed(RAIL),
        published: Some("xtail-order-1"),
        ..MTIL
    },
    TableSpec {
        name: "rail2",
        about: "X-TAIL, order II, with the same template: the same methods",
        suite: "xtail-order-2",
        template: Some("a photo of a {}."),
        methods: Methods::Listed(RAIL),
        published: Some("xtail-order-2"),
        ..MTIL
    },
    MINI,
    TableSpec {
        name: "mini-reversed",
        about: "The embedded suite in reverse order: ten methods",
        orders: Orders::Permuted(&[7, 6, 5, 4, 3, 2, 1, 0]),
        methods: Methods::Listed(TEN),
        published_settings: false,
        ..MINI
    },
    TableSpec {
        name: "mini-mixed",
        about: "The embedded suite in a random order: ten methods",
        orders: Orders::Permuted(&[4, 2, 7, 0, 5, 1, 6, 3]),
        methods: Methods::Listed(TEN),
        published_settings: false,
        ..MINI
    },
    TableSpec {
        name: "mini-conflict",
        about: "Conflicting tasks, with half of the class names permuted: ten methods",
        suite: "conflict-permuted:0.5",
        methods: Methods::Listed(TEN),
        published_settings: false,
        ..MINI
    },
    TableSpec {
        name: "orders",
        about: "The embedded suite in all cyclic shifts of its order",
        orders: Orders::CyclicShifts,
        methods: Methods::Listed(&["zero-shot", "finetune", "cd-map", "gnsp", "gnsp-update"]),
        seeds: &[42],
        published_settings: false,
        ..MINI
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

    #[test]
    fn tables_are_consistent() {
        assert!(spec("table3").is_none());
        for (i, table) in tables().iter().enumerate() {
            assert!(tables()[..i].iter().all(|t| t.name != table.name));
            let methods = table.methods();
            assert!(!table.seeds.is_empty() && !methods.is_empty());
            for (j, method) in methods.iter().enumerate() {
                assert!(!methods[..j].contains(method), "{method}");
                assert!(names().contains(method), "{method}");
                assert!(table.can_run(method), "{}: {method}", table.name);
            }
            if let Some(published) = table.published() {
                assert_eq!(published.suite, table.suite);
            } else {
                assert_eq!(table.published, None);
            }
        }
    }

    #[test]
    fn a_built_in_method_with_published_figures_is_in_the_table() {
        let methods = |name: &str| spec(name).unwrap().methods();
        for method in ["keeplora", "nusa-cl", "inflora"] {
            assert!(methods("table1").contains(&method), "{method}");
        }
        assert_eq!(methods("table2"), ALL);
        // They have figures on X-TAIL and need the task of a test image.
        for method in ["moe-adapters", "finetune-per-task"] {
            assert!(published("xtail-order-1").unwrap().row(method).is_some());
            assert!(!methods("xtail").contains(&method), "{method}");
        }
        assert_eq!(methods("mini"), names());
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
