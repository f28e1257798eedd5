//! Conclusions of a comparison in sentences.

use super::record::{Best, Comparison, REFERENCE, Size, Unit, Workload};
use super::words::{duration, list, ratio, sentence_start, speed};

/// The conclusion for a model size.
pub(super) struct Verdict {
    /// Model size.
    pub size: Size,
    /// The fastest device of each workload, grouped by device.
    pub fastest: String,
    /// Limitations of the conclusion.
    pub caveats: Vec<String>,
}

/// Returns the conclusion for each size.
pub(super) fn verdicts(c: &Comparison) -> Vec<Verdict> {
    c.sizes().into_iter().map(|size| verdict(c, size)).collect()
}

fn verdict(c: &Comparison, size: Size) -> Verdict {
    let works = c.works(Some(size));
    let bests: Vec<(Workload, Best<'_>)> = works
        .iter()
        .filter_map(|w| Some((*w, c.best(size, *w)?)))
        .collect();
    let mut caveats = Vec::new();
    let differing: Vec<String> = each_device(c, |word| {
        let differs = |w: &&Workload| {
            let m = c.get(word, size, **w);
            m.is_some_and(|m| c.agrees(m) == Some(false))
        };
        works
            .iter()
            .filter(differs)
            .map(Workload::to_string)
            .collect()
    });
    if !differing.is_empty() {
        caveats.push(format!(
            "excluded, because the results differ from {REFERENCE}’s by more than the tolerance: \
             {}",
            differing.join("; ")
        ));
    }
    let unchecked: Vec<String> = bests
        .iter()
        .filter(|(_, best)| {
            best.measurement.device != REFERENCE && c.agrees(best.measurement).is_none()
        })
        .map(|(work, best)| format!("{work} on {}", best.measurement.device))
        .collect();
    if !unchecked.is_empty() {
        caveats.push(format!(
            "not checked, because {REFERENCE} has no results to compare with: {}",
            list(&unchecked)
        ));
    }
    let none: Vec<String> = works
        .iter()
        .filter(|w| !bests.iter().any(|(b, _)| b == *w))
        .map(Workload::to_string)
        .collect();
    if !none.is_empty() && !bests.is_empty() {
        caveats.push(format!("no device to recommend for {}", list(&none)));
    }
    let fastest = match &bests[..] {
        [] => "no device to recommend, see the reasons".to_owned(),
        [first, rest @ ..] => {
            let same = |(_, b): &(Workload, Best<'_>)| {
                b.measurement.device == first.1.measurement.device && b.close.is_empty()
            };
            match (
                bests.iter().any(|(_, b)| b.contested),
                bests.iter().all(same),
            ) {
                (false, true) => single_device(&bests),
                (true, true) if rest.len() > 1 => fastest_everywhere(&bests),
                _ => fastest_by_workload(&bests),
            }
        }
    };
    Verdict {
        size,
        fastest,
        caveats,
    }
}

/// Formats `device (workload, …)` for each device with a non-empty list.
fn each_device(c: &Comparison, what: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut all = Vec::new();
    for device in &c.devices {
        let items = what(&device.word);
        if !items.is_empty() {
            all.push(format!("{} ({})", device.word, list(&items)));
        }
    }
    all
}

/// Describes the speed of a single device.
fn single_device(bests: &[(Workload, Best<'_>)]) -> String {
    let chosen = bests
        .iter()
        .find(|(w, _)| *w == Workload::TrainingStep)
        .unwrap_or(&bests[0]);
    let (work, best) = chosen;
    format!(
        "measured on {} only; {}",
        best.measurement.device,
        speed_sentence(&work.to_string(), best)
    )
}

/// Returns `a training step takes 0.12 s` or `image encoding runs at 130 images/s`, with `name` for
/// the workload.
fn speed_sentence(name: &str, best: &Best<'_>) -> String {
    let work = best.measurement.work;
    // A call may consist of several steps.
    let each = match work.unit() {
        Unit::StepsPerSecond => best.measurement.figures().and_then(|f| f.rate()),
        _ => best.measurement.speed(),
    };
    let median = each.map_or(f64::NAN, |r| r.median);
    match work.unit() {
        Unit::StepsPerSecond => format!("a {name} takes {}", duration(1.0 / median)),
        Unit::Seconds => format!("a {name} takes {}", duration(median)),
        unit => format!("{name} runs at {}", speed(median, unit)),
    }
}

/// Describes the speed of the device that is the fastest for every workload.
fn fastest_everywhere(bests: &[(Workload, Best<'_>)]) -> String {
    let mut text = format!(
        "{} is the fastest for everything",
        bests[0].1.measurement.device
    );
    let (step, others): (Vec<_>, Vec<_>) = bests
        .iter()
        .filter_map(|(w, b)| Some((*w, b.times_reference?)))
        .partition(|(w, _)| *w == Workload::TrainingStep);
    let low = others.iter().map(|o| o.1).reduce(f64::min);
    let high = others.iter().map(|o| o.1).reduce(f64::max);
    let others = low
        .zip(high)
        .map(|(low, high)| match (ratio(low), ratio(high)) {
            (low, high) if low == high => low,
            (low, high) => format!("{low} to {high}"),
        });
    match (step.first(), others) {
        (Some((work, times)), Some(others)) => text.push_str(&format!(
            ": {work} {} times {REFERENCE}, the others {others} times",
            ratio(*times)
        )),
        (Some((work, times)), None) => {
            text.push_str(&format!(": {work} {} times {REFERENCE}", ratio(*times)));
        }
        (None, Some(others)) => text.push_str(&format!(", {others} times {REFERENCE}")),
        (None, None) => {}
    }
    text
}

/// Lists the fastest device of each workload.
fn fastest_by_workload(bests: &[(Workload, Best<'_>)]) -> String {
    let mut devices: Vec<&str> = Vec::new();
    for (_, b) in bests {
        if !devices.contains(&b.measurement.device.as_str()) {
            devices.push(&b.measurement.device);
        }
    }
    let part = |device: &&str| {
        let works: Vec<String> = bests
            .iter()
            .filter(|(_, b)| b.measurement.device == **device)
            .map(|(w, b)| {
                let mut notes = Vec::new();
                if let Some(times) = b.times_reference {
                    notes.push(format!("{} × {REFERENCE}", ratio(times)));
                }
                if !b.contested {
                    notes.push("the only one".into());
                } else if !b.close.is_empty() {
                    notes.push(format!("{} about as fast", list(&b.close)));
                }
                match notes.is_empty() {
                    true => w.to_string(),
                    false => format!("{w} ({})", notes.join("; ")),
                }
            })
            .collect();
        format!("{device} for {}", list(&works))
    };
    let parts: Vec<String> = devices.iter().map(part).collect();
    format!("fastest is {}", parts.join("; "))
}

/// Returns the conclusion in one sentence: on the training step of the largest size that has one,
/// or else on the first workload of the largest size.
pub(super) fn headline(c: &Comparison) -> String {
    let sizes = c.sizes();
    let chosen = sizes
        .iter()
        .rev()
        .map(|s| (*s, Workload::TrainingStep))
        .chain(
            sizes
                .iter()
                .rev()
                .flat_map(|s| c.works(Some(*s)).into_iter().map(|w| (*s, w))),
        )
        .find_map(|(s, w)| Some((s, w, c.best(s, w)?)));
    let Some((size, work, best)) = chosen else {
        return match c.measured().is_empty() {
            true => "Nothing could be measured.".into(),
            false => {
                format!("No device gives the results of {REFERENCE} within the tolerance.")
            }
        };
    };
    let device = &best.measurement.device;
    let name = match work.unit() {
        Unit::StepsPerSecond | Unit::Seconds => format!("{work} of {size}"),
        _ => format!("{work} with {size}"),
    };
    let takes = sentence_start(&format!("{} on {device}", speed_sentence(&name, &best)));
    match (best.times_reference, &best.close[..], best.contested) {
        (_, _, false) => format!("{takes}."),
        (_, close @ [_, ..], _) => format!(
            "{takes}, the fastest device here, with {} about as fast.",
            list(close)
        ),
        (Some(times), ..) => format!(
            "{takes}, the fastest device here: {} times {REFERENCE}.",
            ratio(times)
        ),
        (None, ..) => format!("{takes}, the fastest device here."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::fake::{nothing, one_device, three_devices};

    #[test]
    fn a_single_device_is_not_called_the_fastest() {
        let c = one_device();
        assert_eq!(
            headline(&c),
            "A training step of ViT-B/16 takes 7.14 s on flex."
        );
        let all = verdicts(&c);
        assert_eq!(all.len(), 3);
        assert_eq!(
            all[0].fastest,
            "measured on flex only; a training step takes 57.1 ms"
        );
        assert!(all.iter().all(|v| v.caveats.is_empty()));
    }

    #[test]
    fn several_devices_are_ranked_by_workload() {
        let c = three_devices();
        assert_eq!(
            headline(&c),
            "A training step of ViT-L/14 takes 766 ms on cuda:0, the fastest device here: 41 times \
             flex."
        );
        let all = verdicts(&c);
        assert_eq!(
            all[1].fastest,
            "cuda:0 is the fastest for everything: training step 41 times flex, the others 41 \
             times"
        );
        let b16 = &all[2];
        assert!(
            b16.fastest
                .starts_with("fastest is cuda:0 for image encoding (41 × flex), text"),
            "{}",
            b16.fastest
        );
        assert!(
            b16.fastest
                .ends_with("; vulkan:0 for projector build (7.3 × flex)"),
            "{}",
            b16.fastest
        );
        assert_eq!(
            b16.caveats,
            [
                "excluded, because the results differ from flex’s by more than the tolerance: \
                 vulkan:0 (image encoding)"
            ]
        );
    }

    #[test]
    fn devices_with_overlapping_ranges_are_about_as_fast() {
        let mut c = three_devices();
        for m in &mut c.measurements {
            if let (crate::compare::Outcome::Measured(f), "vulkan:0") = (&mut m.outcome, &*m.device)
            {
                f.seconds.iter_mut().for_each(|s| *s *= 7.3 / 40.0);
            }
        }
        let b32 = &verdicts(&c)[1].fastest;
        assert!(
            b32.starts_with(
                "fastest is cuda:0 for image encoding (41 × flex; vulkan:0 about as fast), "
            ),
            "{b32}"
        );
        c.measurements
            .retain(|m| m.size != Size::VitL14 && m.size != Size::VitB16);
        assert_eq!(
            headline(&c),
            "A training step of ViT-B/32 takes 41.8 ms on cuda:0, the fastest device here, with \
             vulkan:0 about as fast."
        );
        // Each workload on another device: no device is faster than another.
        c.measurements.retain(|m| {
            matches!(
                (&*m.device, m.work),
                ("flex", Workload::Evaluation) | ("cuda:0", Workload::TrainingStep)
            )
        });
        assert_eq!(
            verdicts(&c)[1].fastest,
            "fastest is cuda:0 for training step (the only one); flex for evaluation (the only \
             one)"
        );
    }

    #[test]
    fn results_without_a_reference_are_a_caveat() {
        let mut c = three_devices();
        c.measurements.retain(|m| {
            (&*m.device, m.work, m.size) == ("cuda:0", Workload::TrainingStep, Size::VitB32)
        });
        for m in &mut c.measurements {
            if let crate::compare::Outcome::Measured(figures) = &mut m.outcome {
                figures.difference = None;
            }
        }
        assert_eq!(
            verdicts(&c)[0].caveats,
            ["not checked, because flex has no results to compare with: training step on cuda:0"]
        );
    }

    #[test]
    fn without_measurements_nothing_is_recommended() {
        assert_eq!(headline(&nothing()), "Nothing could be measured.");
        assert!(verdicts(&nothing()).is_empty());
        // The only device left has differing results.
        let mut c = three_devices();
        c.measurements.retain(|m| m.device == "vulkan:0");
        c.facts.tolerance = 0.0;
        assert_eq!(
            headline(&c),
            "No device gives the results of flex within the tolerance."
        );
        for v in verdicts(&c) {
            assert_eq!(v.fastest, "no device to recommend, see the reasons");
        }
    }
}
