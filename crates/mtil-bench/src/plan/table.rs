//! Plans as text.

use super::cost::Plan;
use super::resources::Calibration;
use super::units;
use super::work::PlanError;

/// The plans one after the other, task by task, and, with several, a line for each at the end.
/// Hours are shown where a throughput is given.
///
/// # Errors
/// See [`Plan::hours`].
pub fn text(plans: &[Plan], calibration: Option<&Calibration>) -> Result<String, PlanError> {
    let mut text = String::new();
    for plan in plans {
        text.push_str(&tasks(plan, calibration)?);
        text.push('\n');
        text.push_str(&items(plan));
        text.push('\n');
    }
    if plans.len() > 1 {
        text.push_str(&overview(plans, calibration)?);
    }
    Ok(text)
}

fn tasks(plan: &Plan, calibration: Option<&Calibration>) -> Result<String, PlanError> {
    let mut head = vec![
        "task", "updates", "images", "a step", "training", "Gram", "eval", "total",
    ];
    head.extend(calibration.map(|_| "time"));
    let mut lines = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    let mut push = |name: &str, steps: usize, images: u64, step: Option<f64>, total| {
        let total: &super::cost::Macs = total;
        let mut line = vec![
            name.to_owned(),
            steps.to_string(),
            units::si(images as f64),
            step.map(units::macs).unwrap_or_default(),
            units::macs(total.training()),
            units::macs(total.gram()),
            units::macs(total.evaluation()),
            units::macs(total.total()),
        ];
        if let Some(calibration) = calibration {
            line.push(units::hours(plan.hours_of(total, calibration)?.total()));
        }
        lines.push(line);
        Ok(())
    };
    if plan.before.total() > 0.0 {
        push("(pretrained)", 0, 0, None, &plan.before)?;
    }
    for task in &plan.tasks {
        push(
            &task.task,
            task.steps,
            task.images_seen,
            Some(task.step.total()),
            &task.total,
        )?;
    }
    let steps = plan.tasks.iter().map(|t| t.steps).sum();
    let images = plan.tasks.iter().map(|t| t.images_seen).sum();
    push("total", steps, images, None, &plan.total)?;
    let (disk, memory) = (&plan.disk, &plan.memory);
    Ok(format!(
        "{} on {}\n\n{}\ndisk {}: checkpoints {}, Gram matrices {}, state {}, cached features {}\n\
         memory {}: weights {}, gradients {}, moments {}, activations {}, projectors {}, Gram pass {}\n",
        plan.method,
        plan.suite,
        align(&lines),
        units::bytes(disk.total()),
        units::bytes(disk.checkpoints),
        units::bytes(disk.gram),
        units::bytes(disk.state),
        units::bytes(disk.cache),
        units::bytes(memory.total()),
        units::bytes(memory.weights),
        units::bytes(memory.gradients),
        units::bytes(memory.moments),
        units::bytes(memory.activations),
        units::bytes(memory.projectors),
        units::bytes(memory.gram),
    ))
}

/// What the MACs are for, where there are any.
fn items(plan: &Plan) -> String {
    let total = plan.total.total();
    let mut lines = vec![
        ["of the total", "MACs", "share"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (name, macs) in plan.total.items() {
        if macs > 0.0 {
            let share = format!("{:.1} %", 100.0 * macs / total);
            lines.push(vec![name.to_owned(), units::macs(macs), share]);
        }
    }
    align(&lines)
}

fn overview(plans: &[Plan], calibration: Option<&Calibration>) -> Result<String, PlanError> {
    let mut head = vec!["method", "suite", "updates", "MACs", "disk", "memory"];
    head.extend(calibration.map(|_| "time"));
    let mut lines = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for plan in plans {
        let steps: usize = plan.tasks.iter().map(|t| t.steps).sum();
        let mut line = vec![
            plan.method.clone(),
            plan.suite.clone(),
            steps.to_string(),
            units::macs(plan.total.total()),
            units::bytes(plan.disk.total()),
            units::bytes(plan.memory.total()),
        ];
        if let Some(calibration) = calibration {
            line.push(units::hours(plan.hours(calibration)?.total()));
        }
        lines.push(line);
    }
    Ok(align(&lines))
}

/// Columns below each other, the first to the left, a rule below the heads.
fn align(lines: &[Vec<String>]) -> String {
    let width = |c: usize| {
        lines
            .iter()
            .map(|l| l[c].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for (i, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(c, (cell, width))| match c {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        if i == 0 {
            text.push_str(&"─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Savings, Towers, Work, mtil, plan};

    fn gnsp(savings: Savings) -> Plan {
        let work = Work::gnsp(mtil::GNSP_STEPS_1.to_vec(), savings);
        plan(&Towers::vit_b_16(), &mtil::order_1(), &work).unwrap()
    }

    #[test]
    fn a_plan_has_a_line_for_each_task_and_its_totals() {
        let plans = [gnsp(Savings::NONE), gnsp(Savings::OURS)];
        let shown = text(&plans, None).unwrap();
        let line = |start: &str| {
            let found = shown.lines().find(|l| l.starts_with(start)).unwrap();
            let cells = found.split("  ").map(str::trim).filter(|c| !c.is_empty());
            cells.collect::<Vec<_>>()
        };
        assert_eq!(
            line("SUN397")[..4],
            ["SUN397", "1000", "128 k", "8.66 TMAC"]
        );
        assert_eq!(line("total")[1], "7600");
        assert!(!shown.contains("time"));
        assert_eq!(line("gnsp  ")[..3], ["gnsp", "mtil-order-1", "7600"]);
        assert!(line("Gram pass, products")[2].ends_with('%'));

        let calibration = Calibration {
            image_forward: 1000.0,
            train_step: 300.0,
            text_rows: 3000.0,
            text_tokens: 77,
        };
        let shown = text(&plans[..1], Some(&calibration)).unwrap();
        let total = shown.lines().find(|l| l.starts_with("total")).unwrap();
        let hours = units::hours(plans[0].hours(&calibration).unwrap().total());
        assert!(total.ends_with(&hours), "{total} {hours}");
        let broken = Calibration {
            train_step: f64::NAN,
            ..calibration
        };
        let message = text(&plans, Some(&broken)).unwrap_err().to_string();
        assert!(message.contains("train_step"), "{message}");
    }
}
