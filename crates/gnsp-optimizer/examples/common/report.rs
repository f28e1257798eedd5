//! Tables of results.

use super::sequence::{Outcome, mean};

impl Outcome {
    /// Accuracy on every task after the last, in percent.
    pub fn last(&self) -> Vec<f64> {
        let last = self.accuracy.last().into_iter().flatten();
        last.map(|accuracy| 100.0 * accuracy).collect()
    }

    /// Accuracy on every task right after it was learned, mean in percent.
    pub fn learned(&self) -> f64 {
        let diagonal = self.accuracy.iter().enumerate();
        100.0 * mean(diagonal.map(|(task, accuracy)| accuracy[task]))
    }

    /// What was lost of the best accuracy on every task but the last, mean in percentage points.
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

/// Prints a row for every method: the mean over its outcomes, and their standard deviation where
/// there are several.
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

/// `mean ± standard deviation`.
fn cell(numbers: &[f64], scientific: bool) -> String {
    let number = |x: f64| match scientific {
        true => format!("{x:.1e}"),
        false => format!("{x:.1}"),
    };
    let middle = mean(numbers.iter().copied());
    if numbers.len() < 2 {
        return number(middle);
    }
    let squares: f64 = numbers.iter().map(|x| (x - middle).powi(2)).sum();
    let deviation = (squares / (numbers.len() - 1) as f64).sqrt();
    format!("{} ± {}", number(middle), number(deviation))
}
