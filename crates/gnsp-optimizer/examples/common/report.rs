//! Result tables.

use super::sequence::{Outcome, mean};

impl Outcome {
    /// Returns the accuracy on each task after the last one, in percent.
    pub fn last(&self) -> Vec<f64> {
        let last = self.accuracy.last().into_iter().flatten();
        last.map(|accuracy| 100.0 * accuracy).collect()
    }

    /// Returns the mean accuracy on each task right after training on it, in percent.
    pub fn learned(&self) -> f64 {
        let diagonal = self.accuracy.iter().enumerate();
        100.0 * mean(diagonal.map(|(task, accuracy)| accuracy[task]))
    }

    /// Returns the forgetting in percentage points: the mean drop from the best to the last
    /// accuracy, over all tasks but the last.
    pub fn forgetting(&self) -> f64 {
        let earlier = self.accuracy.len() - 1;
        let lost = self.last().into_iter().take(earlier).enumerate();
        mean(lost.map(|(task, last)| {
            let best = self.accuracy[task..]
                .iter()
                .map(|accuracy| 100.0 * accuracy[task])
                .fold(f64::MIN, f64::max);
            best - last
        }))
    }

    /// Returns the values of a table row.
    fn columns(&self) -> Vec<f64> {
        let last = self.last();
        let measures = [
            mean(last.iter().copied()),
            self.learned(),
            self.forgetting(),
            mean(self.interference.iter().copied()),
            mean(self.leak.iter().copied()),
        ];
        last.into_iter().chain(measures).collect()
    }
}

/// Prints a row for each method: the mean over its outcomes and, for several, their standard
/// deviation.
pub fn print_table(methods: &[(&str, &[Outcome])]) {
    let several = methods.iter().any(|(_, outcomes)| outcomes.len() > 1);
    let [percent, share] = if several { [10, 17] } else { [6, 7] };
    let tasks = methods.iter().flat_map(|(_, outcomes)| *outcomes);
    let tasks = tasks.map(|of| of.accuracy.len()).max().unwrap_or(0);
    let names = (1..=tasks).map(|task| (format!("task {task}"), percent));
    let measures = [
        ("mean", percent),
        ("learned", percent),
        ("forgetting", percent),
        ("interference", share),
        ("leak", share),
    ];
    let measures = measures.map(|(name, width)| (name.to_string(), width.max(name.len())));
    let columns: Vec<(String, usize)> = names.chain(measures).collect();

    print!("{:18}", "");
    for (name, width) in &columns {
        print!("  {name:>width$}");
    }
    println!();
    for (method, outcomes) in methods {
        print!("{method:18}");
        let rows: Vec<Vec<f64>> = outcomes.iter().map(Outcome::columns).collect();
        for (column, (_, width)) in columns.iter().enumerate() {
            let numbers: Vec<f64> = rows.iter().map(|row| row[column]).collect();
            let scientific = column >= columns.len() - 2;
            print!("  {:>width$}", cell(&numbers, scientific));
        }
        println!();
    }
}

/// Formats numbers as `mean ± standard deviation`.
fn cell(numbers: &[f64], scientific: bool) -> String {
    let number = |x: f64| match scientific {
        true => format!("{x:.1e}"),
        false => format!("{x:.1}"),
    };
    let average = mean(numbers.iter().copied());
    if numbers.len() < 2 {
        return number(average);
    }
    let squares: f64 = numbers.iter().map(|x| (x - average).powi(2)).sum();
    let deviation = (squares / (numbers.len() - 1) as f64).sqrt();
    format!("{} ± {}", number(average), number(deviation))
}
