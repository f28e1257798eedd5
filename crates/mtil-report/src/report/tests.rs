//! Reports of synthetic run directories.

use std::fs;

use super::fake::{Fake, agnostic, breach, change_metrics, fake, order, world};
use super::*;
use crate::format::decimal;
use mtil_engine::measures::retrieval::{RankSummary, RetrievalSummary};
use mtil_engine::metrics::{MatrixFile, MetricsFile, Recall, Retrieval};
use mtil_engine::run::{Event, RunFiles};

fn report(runs: &[PathBuf]) -> (ReportSummary, String) {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("report.html");
    let summary = write_report(runs, &path).unwrap();
    (summary, fs::read_to_string(&path).unwrap())
}

/// Asserts that the page refers to no resource outside itself.
fn assert_self_contained(html: &str) {
    for attribute in ["src=\"", "href=\"", "srcset=\"", "action=\""] {
        for rest in html.split(attribute).skip(1) {
            assert!(rest.starts_with("data:image/"), "{attribute}{:.60}", rest);
        }
    }
    for word in [
        "http:", "https:", "url(", "@import", "<script", "<link", "<iframe",
    ] {
        assert!(!html.contains(word), "{word}");
    }
}

#[test]
fn figures_of_image_caption_pairs_are_marked() {
    let root = tempfile::tempdir().unwrap();
    let dir = fake("gnsp", 0.25, 0.5, 3).write(root.path(), "gnsp");
    let path = dir.join(MatrixFile::NAME);
    let mut file = MatrixFile::load(&path).unwrap();
    let task = file.order[1].clone();
    file.retrieval_tasks = vec![task.clone()];
    file.save(&path).unwrap();
    let recall = |r1| Recall {
        r1,
        r5: r1 + 20.5,
        r10: r1 + 30.25,
    };
    let ranks = RankSummary {
        median: 3.5,
        mean: 4.0,
    };
    let retrieval = RetrievalSummary {
        recall: Retrieval {
            image_to_text: recall(41.5),
            text_to_image: recall(12.5),
        },
        image_to_text: ranks,
        text_to_image: ranks,
    };
    let log = RunFiles::new(&dir).events().unwrap();
    let first = log.events.into_iter().find_map(|event| match event {
        Event::Evaluation(record) => Some(record),
        _ => None,
    });
    let mut record = first.unwrap();
    record.caption_tasks.insert(task.clone(), retrieval);
    let line = serde_json::to_string(&Event::Evaluation(record)).unwrap();
    let events = dir.join("events.jsonl");
    let text = fs::read_to_string(&events).unwrap();
    fs::write(&events, format!("{text}{line}\n")).unwrap();

    let runs = [root.path().to_path_buf()];
    let (_, page) = report(&runs);
    assert_self_contained(&page);
    let title = format!("{task} (R@1)");
    let note = format!("{task}: image-caption pairs. R@1");
    for part in [
        &title,
        &note,
        "Retrieval on image–caption tasks",
        "62.0",
        "42.8",
        "27.0",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains(&format!("{} (R@1)", file.order[0])));
    let table = summary_table(&runs).unwrap();
    assert!(table.contains(&title) && table.contains(&note), "{table}");
    assert!(figures_table(&runs).unwrap().contains(&note));
    // Without such a task there is neither.
    file.retrieval_tasks.clear();
    file.save(&path).unwrap();
    let (_, page) = report(&runs);
    assert!(!page.contains("(R@1)") && !page.contains("image–caption tasks"));
}

#[test]
fn each_seed_of_equal_settings_counts_once() {
    let root = tempfile::tempdir().unwrap();
    let run = |seed, trained, folder: &str| {
        let run = Fake {
            seed,
            trained,
            ..fake("gnsp", 0.25, 0.5, 4)
        };
        run.write(root.path(), folder)
    };
    // Two seeds in one command, then the first of them alone, and the second one again, stopped.
    run(2, 3, "earlier-gnsp");
    run(1, 4, "gnsp");
    run(1, 4, "gnsp-seed-1");
    run(2, 4, "gnsp-seed-2");
    // The same request on other images is no repetition.
    let other = run(1, 4, "other-images").join("config.toml");
    let config = fs::read_to_string(&other).unwrap();
    fs::write(&other, format!("suite_fingerprint = \"ab\"\n{config}")).unwrap();
    let (summary, page) = report(&[root.path().to_path_buf()]);
    assert_eq!((summary.methods, summary.runs, summary.finished), (2, 3, 3));
    assert!(page.contains("gnsp suite_fingerprint=ab"));
    for words in [
        [
            "gnsp (seed 1): ",
            "gnsp-seed-1 repeats ",
            "gnsp and is left out.",
        ],
        [
            "gnsp (seed 2): ",
            "earlier-gnsp repeats ",
            "gnsp-seed-2 and is left out.",
        ],
    ] {
        let found = |note: &&String| words.iter().all(|word| note.contains(word));
        assert_eq!(
            summary.notes.iter().filter(found).count(),
            1,
            "{:?}",
            summary.notes
        );
    }
}

#[test]
fn images_left_out_by_several_processes_count_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = fake("gnsp", 0.25, 0.5, 3).write(root.path(), "gnsp");
    let path = dir.join("events.jsonl");
    let mut log = fs::read_to_string(&path).unwrap();
    for names in [r#"["a.png","b.png"]"#, r#"["b.png","c.png"]"#] {
        let event = r#"{"event":"skipped_images","count":2,"names":"#;
        log.push_str(&format!("{event}{names}}}\n"));
    }
    fs::write(&path, log).unwrap();
    let (summary, _) = report(&[dir]);
    let skipped: Vec<&String> = summary
        .notes
        .iter()
        .filter(|note| note.contains("unreadable images"))
        .collect();
    assert_eq!(
        skipped,
        ["gnsp (seed 42): the run left out 3 unreadable images."]
    );
}

#[test]
fn lines_of_a_log_that_cannot_be_read_are_counted() {
    let root = tempfile::tempdir().unwrap();
    let dir = fake("gnsp", 0.25, 0.5, 3).write(root.path(), "gnsp");
    let path = dir.join("events.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let (first, rest) = whole.split_once('\n').unwrap();
    let note = |damage: &str| {
        fs::write(&path, format!("{first}\n{damage}{rest}")).unwrap();
        let (summary, _) = report(std::slice::from_ref(&dir));
        assert_eq!((summary.runs, summary.finished), (1, 1));
        let of_log = |note: &&String| note.contains("its log");
        summary.notes.iter().find(of_log).cloned()
    };
    assert_eq!(note(""), None);
    let expected = |lines: &str| {
        let note = format!("gnsp (seed 42): its log has {lines}, left out here.");
        Some(note)
    };
    assert_eq!(note("{\"event\":\"no\n"), expected("1 unreadable line"));
    let two = "{\"event\":\"no\n\0\0\0\n";
    assert_eq!(note(two), expected("2 unreadable lines"));
}

#[test]
fn the_report_has_all_figures_and_no_external_resources() {
    let root = tempfile::tempdir().unwrap();
    let runs = [world(root.path(), 6)];
    let (summary, html) = report(&runs);
    assert_eq!((summary.methods, summary.runs, summary.finished), (6, 6, 6));
    assert_self_contained(&html);
    assert!(html.matches("data:image/png;base64,").count() == 30);
    for method in ["finetune", "lwf", "wise-ft", "zscl", "gnsp"] {
        let dir = root.path().join(method);
        let matrix = MatrixFile::load(&dir.join(MatrixFile::NAME)).unwrap();
        let m = matrix.accuracy().unwrap();
        for figure in [m.transfer(), m.average(), m.last(), m.diagonal(), m.bwt()] {
            let text = decimal(figure.unwrap(), 1, false);
            assert!(html.contains(&text), "{method} {text}");
        }
        for v in m.rows().iter().flatten() {
            assert!(html.contains(&format!(">{}</td>", decimal(v.unwrap(), 1, false))));
        }
    }
    let value = |method: &str| {
        let path = root.path().join(method).join(MetricsFile::NAME);
        MetricsFile::load(&path).unwrap()
    };
    let (g, f) = (value("gnsp"), value("finetune"));
    let printed = |v: Option<f64>| decimal(v.unwrap(), 1, false).parse::<f64>().unwrap();
    let kept = decimal(printed(g.transfer) - printed(f.transfer), 1, false);
    assert!(
        summary.outcome.starts_with(&format!(
            "After 6 tasks, gnsp kept {kept} points more zero-shot transfer than finetune"
        )),
        "{}",
        summary.outcome
    );
    assert!(html.contains("visual.blocks.2.mlp.c_proj"));
    assert!(html.contains("burn 0.22.1"));
    assert!(html.contains("template ensemble everywhere"));

    let table = summary_table(&runs).unwrap();
    assert!(
        table.contains("prompt rule: template ensemble everywhere"),
        "{table}"
    );
    let row = table.lines().find(|l| l.starts_with("gnsp")).unwrap();
    assert!(row.contains(&format!("{:.1}", g.last.unwrap())), "{row}");
}

#[test]
fn the_outcome_states_the_sign_of_the_difference() {
    let root = tempfile::tempdir().unwrap();
    fake("gnsp", 4.0, 3.0, 4).write(root.path(), "gnsp");
    fake("finetune", 0.5, 0.5, 4).write(root.path(), "finetune");
    let (summary, _) = report(&[root.path().into()]);
    assert!(
        summary
            .outcome
            .contains("points less zero-shot transfer than finetune")
    );
    assert!(
        summary.outcome.contains("points lower"),
        "{}",
        summary.outcome
    );

    let root = tempfile::tempdir().unwrap();
    fake("same", 1.0, 1.0, 4).write(root.path(), "gnsp");
    for m in ["gnsp", "finetune"] {
        let mut file = MatrixFile::load(&root.path().join("gnsp/matrix.json")).unwrap();
        file.method = m.into();
        fs::create_dir_all(root.path().join(m)).unwrap();
        file.save(&root.path().join(m).join(MatrixFile::NAME))
            .unwrap();
    }
    let (summary, _) = report(&[root.path().into()]);
    assert!(
        summary
            .outcome
            .contains("gnsp kept the same zero-shot transfer as finetune"),
        "{}",
        summary.outcome
    );
}

#[test]
fn the_gap_is_decomposed_if_a_run_recorded_the_geometry() {
    let root = tempfile::tempdir().unwrap();
    let dir = fake("gnsp", 0.25, 0.5, 3).write(root.path(), "gnsp");
    let (_, html) = report(&[root.path().into()]);
    assert!(html.contains("Decomposition of the modality gap"));
    for row in [
        "<td>Margin of matching pairs, logits</td><td>13.5</td>",
        "<td>Cosine of matching pairs</td><td>0.315</td>",
        "<td>Cosine of other pairs</td><td>0.180</td>",
        "<td>Norm of the mean text</td><td>0.625</td><td>0.625</td><td>0.625</td><td>0.625</td>",
    ] {
        assert!(html.contains(row), "{row}");
    }
    // Runs of earlier versions recorded the gap alone.
    let path = dir.join("events.jsonl");
    let events = fs::read_to_string(&path).unwrap();
    let earlier: Vec<&str> = events.lines().filter(|l| !l.contains("margin")).collect();
    fs::write(&path, earlier.join("\n") + "\n").unwrap();
    let (_, html) = report(&[root.path().into()]);
    assert!(html.contains("Modality gap") && !html.contains("Decomposition of the modality gap"));
}

#[test]
fn names_from_all_files_are_escaped() {
    let root = tempfile::tempdir().unwrap();
    let evil = "<b>&\"'";
    let mut f = fake("gnsp", 0.3, 0.4, 3);
    f.order = vec![evil.into(), "two".into(), "</script>".into()];
    f.ranks = true;
    let dir = f.write(root.path(), "gnsp");
    fs::write(dir.join("config.toml"), "x = '<i>&'\n").unwrap();
    let samples = root.path().join("samples").join("0-<b>&\"'");
    fs::create_dir_all(&samples).unwrap();
    fs::write(samples.join("0-<b>&\"'.png"), [1, 2, 3]).unwrap();
    let mut file = MatrixFile::load(&dir.join(MatrixFile::NAME)).unwrap();
    file.method = "<em>".into();
    file.suite = "<u>".into();
    file.prompt_rule = "<s>".into();
    file.save(&dir.join(MatrixFile::NAME)).unwrap();
    let (_, html) = report(&[root.path().into()]);
    let head = html.find("</style>").unwrap();
    for tag in [
        "<b>&\"",
        "<b>&amp;",
        "<i>&",
        "<em>",
        "<u>",
        "<s>",
        "</script>",
    ] {
        assert!(!html[head..].contains(tag), "{tag}");
    }
    assert!(html.contains("&lt;b&gt;&amp;&quot;"));
    assert_self_contained(&html);
}

#[test]
fn sample_images_have_the_whole_names_of_their_task_and_class() {
    let root = tempfile::tempdir().unwrap();
    fake("gnsp", 0.3, 0.4, 3).write(root.path(), "gnsp");
    let samples = root.path().join("samples").join("00-pets_2~0a1b2c3d");
    fs::create_dir_all(&samples).unwrap();
    for name in ["00-red_panda", "01-fox"] {
        fs::write(samples.join(format!("{name}.png")), [1, 2, 3]).unwrap();
    }
    let (_, html) = report(&[root.path().into()]);
    assert!(html.contains("pets_2~0a1b2c3d") && html.contains("Sample of class red_panda"));
    let names = SampleNames {
        task: "pets/2".into(),
        classes: vec!["red/panda".into()],
    };
    names.write(&samples).unwrap();
    let (_, html) = report(&[root.path().into()]);
    for words in ["pets/2", "Sample of class red/panda", "Sample of class fox"] {
        assert!(html.contains(words), "{words}");
    }
    assert!(!html.contains("pets_2~0a1b2c3d"));
}

#[test]
fn unfinished_runs_are_marked() {
    let root = tempfile::tempdir().unwrap();
    let partial = Fake {
        trained: 2,
        ..fake("gnsp", 0.3, 0.4, 5)
    };
    partial.write(root.path(), "gnsp");
    fs::create_dir_all(root.path().join("lwf")).unwrap();
    fs::write(root.path().join("lwf/events.jsonl"), "").unwrap();
    let (summary, html) = report(&[root.path().into()]);
    assert_eq!(summary.finished, 0);
    assert_eq!(
        summary.outcome,
        "No training run is finished yet: gnsp has been evaluated after 2 of 5 tasks."
    );
    assert!(html.contains("still running or was interrupted"));
    assert!(summary.notes[0].contains("lwf"), "{:?}", summary.notes);
    assert!(
        summary_table(&[root.path().into()])
            .unwrap()
            .contains("* unfinished")
    );

    // A finished run takes precedence in the outcome.
    fake("finetune", 3.0, 3.0, 5).write(root.path(), "finetune");
    let (summary, _) = report(&[root.path().into()]);
    assert!(
        summary
            .outcome
            .starts_with("After 5 tasks, finetune reaches")
    );
}

#[test]
fn zero_shot_single_task_and_matrix_only_runs_are_reported() {
    let root = tempfile::tempdir().unwrap();
    let zero = Fake {
        trained: 0,
        ..fake("zero-shot", 0.0, 0.0, 4)
    };
    zero.write(root.path(), "zero-shot");
    let (summary, html) = report(&[root.path().into()]);
    assert!(summary.outcome.starts_with("The pretrained model reaches"));
    assert!(html.contains("nothing trained"));

    let root = tempfile::tempdir().unwrap();
    let dir = fake("gnsp", 0.3, 0.4, 1).write(root.path(), "gnsp");
    let (summary, _) = report(std::slice::from_ref(&dir));
    assert!(
        summary.outcome.starts_with("After 1 task, gnsp reaches"),
        "{}",
        summary.outcome
    );

    for file in ["metrics.json", "events.jsonl", "config.toml"] {
        fs::remove_file(dir.join(file)).unwrap();
    }
    let (summary, html) = report(&[dir]);
    assert_eq!(summary.finished, 1);
    assert!(html.contains("no metrics.json"));
}

#[test]
fn twelve_methods_and_eleven_tasks_are_reported() {
    let root = tempfile::tempdir().unwrap();
    let names = [
        "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "finetune", "gnsp",
    ];
    for (i, name) in names.iter().enumerate() {
        fake(name, i as f64 * 0.3, 1.0, 11).write(root.path(), name);
    }
    let (summary, html) = report(&[root.path().into()]);
    assert_eq!(summary.methods, 12);
    // Eight methods have a colour, the others are grey; four matrices are folded.
    assert!(!html.contains("dash\"") && html.contains("cn faint"));
    assert!(html.contains("4 other methods") && html.contains("Matrices of 4 more methods"));
    assert!(html.contains("Losses of 4 more methods"));
    // Many methods have no rows of single seeds, which can be copied even so.
    for name in names {
        let second = Fake {
            seed: 43,
            ..fake(name, 0.2, 1.0, 11)
        };
        second.write(root.path(), &format!("{name}-43"));
    }
    let (_, html) = report(&[root.path().into()]);
    assert!(html.contains("mean of 2 seeds") && !html.contains("<tr class=\"seed\""));
    assert!(html.contains("\ngnsp,43,"));
    assert!(html.contains("\\begin{tabular}{lrrrrrrrrrrr}"));
    assert_self_contained(&html);
}

#[test]
fn seeds_of_a_method_are_averaged() {
    let root = tempfile::tempdir().unwrap();
    let mut last = Vec::new();
    for seed in 1..=3 {
        let f = Fake {
            seed,
            ..fake("gnsp", 0.3, 0.4, 4)
        };
        let dir = f.write(root.path(), &format!("seed-{seed}/gnsp"));
        last.push(
            MetricsFile::load(&dir.join(MetricsFile::NAME))
                .unwrap()
                .last
                .unwrap(),
        );
    }
    let mean = last.iter().sum::<f64>() / 3.0;
    let sd = (last.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
    let (summary, html) = report(&[root.path().into()]);
    assert_eq!((summary.methods, summary.runs), (1, 3));
    assert!(html.contains("mean of 3 seeds") && html.contains("<tr class=\"seed\""));
    let cell = format!("{mean:.1}<span class=\"sd\"> ± {sd:.1}</span>");
    assert!(html.contains(&cell), "{cell}");
    let table = summary_table(&[root.path().into()]).unwrap();
    assert!(table.contains(&format!("{mean:.1} ± {sd:.1}")), "{table}");
    // The runs one by one, without the unfinished one.
    let unfinished = Fake {
        seed: 4,
        trained: 2,
        ..fake("gnsp", 0.3, 0.4, 4)
    };
    unfinished.write(root.path(), "seed-4/gnsp");
    let csv = runs_csv(&[root.path().into()]).unwrap();
    let mut lines = csv.lines();
    let head: Vec<&str> = lines.next().unwrap().split(',').collect();
    let at = head.iter().position(|column| *column == "Last").unwrap();
    let found: Vec<(&str, &str)> = lines
        .map(|line| line.split(',').collect::<Vec<_>>())
        .map(|fields| (fields[1], fields[at]))
        .collect();
    let last: Vec<String> = last.iter().map(|last| format!("{last:.4}")).collect();
    assert_eq!(
        found,
        [("1", &*last[0]), ("2", &*last[1]), ("3", &*last[2])]
    );
}

#[test]
fn errors_name_the_file_and_the_difference() {
    let root = tempfile::tempdir().unwrap();
    let runs = [root.path().to_path_buf()];
    let failure = || summary_table(&runs).unwrap_err();
    assert!(matches!(failure(), ReportError::NoRuns { .. }));
    assert!(failure().to_string().contains("matrix.json"));

    let dir = fake("gnsp", 0.3, 0.4, 3).write(root.path(), "gnsp");
    for (file, text) in [
        ("metrics.json", "{\"transfer\": \"high\"}"),
        ("matrix.json", "[]"),
        ("config.toml", "= 1"),
    ] {
        let path = dir.join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, text).unwrap();
        let e = failure().to_string();
        let named = match file {
            "config.toml" => dir.display().to_string(),
            _ => path.display().to_string(),
        };
        assert!(e.contains(&named), "{e}");
        fs::write(&path, good).unwrap();
    }

    let other = Fake {
        order: order(4)[1..].to_vec(),
        ..fake("lwf", 1.0, 1.0, 3)
    };
    other.write(root.path(), "lwf");
    let e = failure();
    assert!(matches!(e, ReportError::Mixed { .. }));
    assert!(
        e.to_string()
            .contains("order shapes, colours, numerals against colours"),
        "{e}"
    );
}

#[test]
fn figures_that_are_not_comparable_are_noted() {
    let root = tempfile::tempdir().unwrap();
    let dir = fake("gnsp", 0.3, 0.4, 3).write(root.path(), "gnsp");
    fake("lwf", 1.0, 1.0, 3).write(root.path(), "lwf");
    let path = dir.join(MatrixFile::NAME);
    let mut file = MatrixFile::load(&path).unwrap();
    file.prompt_rule = "first template".into();
    file.matrix[2][0] = file.matrix[2][0].map(|v| v - 1.0);
    file.save(&path).unwrap();
    let events = dir.join("events.jsonl");
    let mut log = fs::read_to_string(&events).unwrap();
    log.push_str("{\"event\":\"diverged\",\"task\":1,\"step\":3}\n");
    log.push_str("{\"event\":\"skipped_images\",\"count\":4,\"names\":[]}\n");
    fs::write(&events, log).unwrap();
    let (summary, html) = report(&[root.path().into()]);
    assert!(
        summary
            .notes
            .iter()
            .any(|n| n.contains("diverged while training colours"))
    );
    assert!(
        summary
            .notes
            .iter()
            .any(|n| n.contains("4 unreadable images"))
    );
    assert!(summary.notes.iter().any(|n| n.contains("first template")));
    assert!(
        summary
            .notes
            .iter()
            .any(|n| n.contains("metrics.json says Last"))
    );
    assert!(html.contains("not comparable"));
}

#[test]
fn costs_are_shown_if_a_run_recorded_them() {
    let root = tempfile::tempdir().unwrap();
    let runs = [root.path().to_path_buf()];
    let dir = fake("gnsp", 0.3, 0.4, 3).write(root.path(), "gnsp");
    fake("lwf", 1.0, 1.0, 3).write(root.path(), "lwf");
    let (_, html) = report(&runs);
    assert!(html.contains(">Memory</abbr>"));
    assert!(!html.contains("Kept") && !html.contains("Trainable"));
    let table = summary_table(&runs).unwrap();
    let head = table.lines().find(|l| l.starts_with("method")).unwrap();
    assert!(head.ends_with("memory"), "{table}");

    change_metrics(&dir, |m| {
        m.bytes_kept = Some(3_565_158);
        m.trainable_parameters = Some(149_620_737);
        m.peak_rss_mb = Some(1000.0); // MiB
    });
    let (_, html) = report(&runs);
    assert!(html.contains("<td>1.05 GB</td>"));
    assert!(html.contains(">Kept</abbr>") && html.contains("<td>3.57 MB</td>"));
    assert!(html.contains(">Trainable</abbr>") && html.contains("<td>150 M</td>"));
    let table = summary_table(&runs).unwrap();
    let row = |name: &str| table.lines().find(|l| l.starts_with(name)).unwrap();
    assert!(row("method").ends_with("kept  trainable"), "{table}");
    assert!(row("gnsp").ends_with("3.57 MB      150 M"), "{table}");
    assert!(row("lwf").ends_with("     -          -"), "{table}");
}

#[test]
fn crossed_limits_are_listed_with_their_consequence() {
    let root = tempfile::tempdir().unwrap();
    let runs = [root.path().to_path_buf()];
    let stopped = Fake {
        trained: 2,
        ..fake("finetune", 3.0, 3.0, 4)
    };
    let dir = stopped.write(root.path(), "finetune");
    let done = fake("gnsp", 0.3, 0.4, 4).write(root.path(), "gnsp");
    let (_, html) = report(&runs);
    assert!(!html.contains("Crossed limits"));
    assert!(html.contains("is still running or was interrupted"));

    breach(&dir, 1, 84.96, "warn");
    breach(&dir, 2, 81.5, "stop");
    // A resumed run repeats the check of a stage.
    breach(&dir, 2, 80.25, "stop");
    // A run continued after the stop is not a stopped run.
    breach(&done, 2, 84.0, "stop");
    let (_, html) = report(&runs);
    assert!(html.contains("Crossed limits"));
    assert_eq!(html.matches("accuracy on shapes fell").count(), 3);
    assert_eq!(html.matches("<strong>run stopped</strong>").count(), 2);
    assert_eq!(html.matches("<td>warning only</td>").count(), 1);
    assert!(html.contains("<td>after shapes</td>") && html.contains("<td>after colours</td>"));
    // 84.96 must not be printed as 85.0, its limit.
    assert!(html.contains("<td>84.96</td>"));
    assert!(html.contains("<td>80.2</td>") && !html.contains("<td>81.5</td>"));
    assert!(html.contains(
        "finetune (seed 42) was stopped because it crossed the limit \
         <code>accuracy.shapes&lt;85</code>: evaluated after 2 of 4 tasks."
    ));
    assert!(!html.contains("is still running or was interrupted"));
    let table = summary_table(&runs).unwrap();
    for line in [
        "Limit crossed: finetune (seed 42) after task 1: accuracy.shapes<85\n",
        "Limit crossed: finetune (seed 42) after task 2: accuracy.shapes<85; run stopped\n",
    ] {
        assert!(table.contains(line), "{table}");
    }
}

#[test]
fn notes_on_the_protocol_name_their_runs() {
    let root = tempfile::tempdir().unwrap();
    for method in ["gnsp", "lwf", "zscl"] {
        let dir = fake(method, 0.3, 0.4, 3).write(root.path(), method);
        change_metrics(&dir, |m| {
            m.notes = vec!["subset of 500 <images>.".into()];
            m.notes.push(if method == "lwf" {
                "every 2 tasks".into()
            } else {
                "one template".into()
            });
        });
    }
    let (summary, html) = report(&[root.path().into()]);
    let expected = [
        "Evaluation: subset of 500 <images>.",
        "Evaluation of all but lwf (seed 42): one template.",
        "Evaluation of lwf (seed 42): every 2 tasks.",
    ];
    assert_eq!(summary.notes, expected);
    assert!(html.contains("Evaluation: subset of 500 &lt;images&gt;."));
    let table = summary_table(&[root.path().into()]).unwrap();
    assert!(expected.iter().all(|n| table.contains(n)), "{table}");
}

#[test]
fn a_note_on_all_seeds_of_a_method_names_the_method_alone() {
    let root = tempfile::tempdir().unwrap();
    for method in ["gnsp", "lwf", "zscl"] {
        for seed in [42, 43] {
            let name = format!("{method}-seed-{seed}");
            let run = Fake {
                seed,
                ..fake(method, 0.3, 0.4, 3)
            };
            let dir = run.write(root.path(), &name);
            let noted = method == "lwf" || (method == "zscl" && seed == 43);
            change_metrics(&dir, |m| {
                m.notes = noted.then(|| "x".into()).into_iter().collect()
            });
        }
    }
    let (summary, _) = report(&[root.path().into()]);
    assert_eq!(summary.notes, ["Evaluation of lwf, zscl (seed 43): x."]);
}

#[test]
fn task_agnostic_accuracies_have_their_own_columns() {
    let root = tempfile::tempdir().unwrap();
    let runs = [root.path().to_path_buf()];
    let dir = fake("gnsp", 0.3, 0.4, 3).write(root.path(), "gnsp");
    fake("lwf", 1.0, 1.0, 3).write(root.path(), "lwf");
    let (_, html) = report(&runs);
    assert!(!html.contains("task-agnostic"));

    let file = agnostic(&dir, 7.25);
    let own = file.accuracy().unwrap();
    let (_, html) = report(&runs);
    assert_eq!(html.matches("<small>task-agnostic</small>").count(), 2);
    let zero = own.as_constant().unwrap();
    for figure in [own.average(), own.last(), zero.last()] {
        let text = decimal(figure.unwrap(), 1, false);
        assert!(html.contains(&format!(">{text}</td>")), "{text}");
    }
    let table = summary_table(&runs).unwrap();
    let row = table.lines().find(|l| l.starts_with("gnsp")).unwrap();
    let both = format!("{:.1}", own.last().unwrap());
    assert!(
        table.contains("Last agnostic") && row.contains(&both),
        "{table}"
    );

    let mut other = file.clone();
    other.order.reverse();
    let path = dir.join("matrix_all.json");
    other.save(&path).unwrap();
    let e = summary_table(&runs).unwrap_err().to_string();
    assert!(
        e.contains("matrix_all.json") && e.contains("not of one run"),
        "{e}"
    );
    fs::write(&path, "{").unwrap();
    let e = summary_table(&runs).unwrap_err().to_string();
    assert!(
        e.contains("matrix_all.json") && e.contains("malformed"),
        "{e}"
    );
}

/// Writes sample pages: `MTIL_SAMPLE_REPORT=folder cargo test ... -- --ignored`.
#[test]
#[ignore = "writes sample pages for visual inspection"]
fn sample_report() {
    let folder = PathBuf::from(std::env::var_os("MTIL_SAMPLE_REPORT").unwrap());
    for tasks in [6, 11] {
        let root = folder.join(format!("{tasks}-tasks"));
        world(&root, tasks);
        let table = summary_table(std::slice::from_ref(&root)).unwrap();
        fs::write(root.join("summary.txt"), table).unwrap();
        write_report(std::slice::from_ref(&root), &root.join("report.html")).unwrap();
        // The same with all optional data of a run.
        for (i, method) in ["finetune", "lwf", "wise-ft", "zscl", "gnsp"]
            .iter()
            .enumerate()
        {
            let dir = root.join(method);
            agnostic(&dir, 4.0 + i as f64);
            change_metrics(&dir, |m| {
                m.bytes_kept = Some(i as u64 * 170_000_000);
                m.trainable_parameters = Some(149_620_737);
                m.notes = vec!["subset of 500 images of each task".into()];
            });
        }
        breach(&root.join("lwf"), 2, 84.1, "warn");
        breach(&root.join("finetune"), 3, 71.4, "stop");
        write_report(std::slice::from_ref(&root), &root.join("everything.html")).unwrap();
        let table = summary_table(std::slice::from_ref(&root)).unwrap();
        fs::write(root.join("everything.txt"), table).unwrap();
    }
}

#[test]
fn runs_that_differ_only_in_the_seed_share_a_row() {
    let root = tempfile::tempdir().unwrap();
    for (folder, seed, lr) in [("a", 1, 0.1), ("b", 2, 0.1), ("c", 1, 0.2), ("d", 2, 0.2)] {
        let run = Fake {
            seed,
            ..fake("gnsp", 0.3, 0.4, 4)
        };
        let dir = run.write(root.path(), folder);
        let config =
            format!("seed = {seed}\nsuite_fingerprint = \"{folder}\"\n[method]\nlr = {lr}\n");
        std::fs::write(dir.join("config.toml"), config).unwrap();
    }
    let (summary, html) = report(&[root.path().into()]);
    assert_eq!((summary.methods, summary.runs), (2, 4));
    for name in ["gnsp lr=0.1", "gnsp lr=0.2"] {
        assert!(html.contains(name), "{name}");
    }
}

#[test]
fn differences_are_paired_over_seeds_and_may_not_be_separated() {
    let outcome = |drift: f64, forget: f64| {
        let root = tempfile::tempdir().unwrap();
        for seed in 1..=3 {
            for (method, drift, forget) in [("gnsp", drift, forget), ("finetune", 1.0, 1.0)] {
                let run = Fake {
                    seed,
                    ..fake(method, drift, forget, 6)
                };
                run.write(root.path(), &format!("{method}-{seed}"));
            }
        }
        let (summary, html) = report(&[root.path().into()]);
        assert!(html.contains("Differences between methods"));
        (summary.outcome, html)
    };
    let (far, html) = outcome(0.1, 0.1);
    assert!(far.contains("95 % intervals over 3 paired seeds"), "{far}");
    assert!(!far.contains("not separated"), "{far}");
    assert!(html.contains("Points above finetune"), "no table");
    let (near, html) = outcome(1.0, 1.0);
    assert!(near.contains("not separated"), "{near}");
    assert!(html.contains("<small>not separated</small>"));
}

#[test]
fn an_upper_bound_is_not_the_best_method() {
    let root = tempfile::tempdir().unwrap();
    for (name, forget) in [("lwf", 0.6), ("wc", 0.8), ("best", 0.0)] {
        fake(name, 0.3, forget, 4).write(root.path(), name);
    }
    let outcome = || report(&[root.path().into()]).0.outcome;
    assert!(outcome().contains("best has the highest"), "{}", outcome());
    let config =
        "suite = \"invented-world\"\nseed = 42\n\n[method]\nname = \"best\"\nper_task = true\n";
    fs::write(root.path().join("best/config.toml"), config).unwrap();
    assert!(outcome().contains("lwf has the highest"), "{}", outcome());
    // Nor is its row the one in bold.
    let html = report(&[root.path().into()]).1;
    let row = |name: &str| {
        let from = html.find(&format!("</svg> {name}")).expect(name);
        &html[from..from + html[from..].find("</tr>").unwrap()]
    };
    assert!(!row("best").contains("class=\"best\""), "{}", row("best"));
    assert!(row("lwf").contains("class=\"best\""), "{}", row("lwf"));
}

#[test]
fn methods_that_are_equal_as_printed_share_the_headline() {
    let root = tempfile::tempdir().unwrap();
    let outcome = || report(&[root.path().into()]).0.outcome;
    fake("wc", 0.3, 0.6, 4).write(root.path(), "wc");
    // Names of one length have the same noise.
    for name in ["lwf", "ewc"] {
        fake(name, 0.3, 0.0, 4).write(root.path(), name);
    }
    assert!(
        outcome().contains("ewc and lwf have the highest"),
        "{}",
        outcome()
    );
    fake("map", 0.3, 0.0, 4).write(root.path(), "map");
    assert!(
        outcome().contains("3 methods have the highest"),
        "{}",
        outcome()
    );
    assert!(outcome().contains(" % each)"), "{}", outcome());
}
