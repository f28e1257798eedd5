//! [`fetch`](super::fetch()) against servers that behave, and against those that do not.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    Cache, Check, Entry, FetchOptions, Fetched, Layout, Progress, Registry, Role, Token, ZooError,
    fetch::fetch_with,
    loopback::{COMMIT, Reply, Server, hub, sha256},
};

const HEAD: &str = "[[model]]\nname = 'a/b'\narchitecture = 'ViT-B-16'\n\
    preprocess = { size = 224, mean = [0, 0, 0], std = [1, 1, 1], interpolation = 'bicubic', resize_mode = 'squash' }\n";

/// A cache, the options for it, and what they led to.
struct Bench {
    dir: TempDir,
    options: FetchOptions,
    /// What was waited, without waiting.
    waits: Vec<Duration>,
    /// Bytes that progress reports named.
    done: Vec<u64>,
}

impl Bench {
    fn new(endpoint: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = FetchOptions::new(Cache::at(dir.path()));
        options.endpoint = endpoint.to_owned();
        options.retries = 2;
        options.backoff = Duration::from_secs(1);
        Self {
            dir,
            options,
            waits: Vec::new(),
            done: Vec::new(),
        }
    }

    fn fetch(&mut self, entry: &Entry) -> Result<Fetched, ZooError> {
        let done = &mut self.done;
        let mut progress = |p: Progress<'_>| done.push(p.done);
        fetch_with(entry, &self.options, &mut progress, &mut |wait| {
            self.waits.push(wait)
        })
    }

    #[track_caller]
    fn fails(&mut self, entry: &Entry) -> ZooError {
        self.fetch(entry).expect_err("fetched")
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.dir.path().join("hub/models--o--n/blobs").join(name)
    }

    fn archive(&self, content: &[u8]) -> PathBuf {
        let folder = self.dir.path().join("clip-model");
        folder.join(sha256(content)).join("x.pt")
    }

    /// No file that is not whole under the name of one that is.
    fn is_clean(&self) -> bool {
        fn all(folder: &Path, names: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => all(&path, names),
                    path => names.push(path),
                }
            }
        }
        let mut names = Vec::new();
        all(self.dir.path(), &mut names);
        names.iter().all(|path| {
            matches!(
                path.extension().and_then(|e| e.to_str()),
                Some("lock" | "incomplete" | "corrupt")
            )
        })
    }
}

fn parse(source: &str) -> Entry {
    let registry = Registry::parse(&format!("{HEAD}{source}"), Path::new("my.toml")).unwrap();
    registry.iter().next().unwrap().clone()
}

/// A model with the file `m` on the Hub.
fn on_hub() -> Entry {
    on_hub_with("{ role = 'weights', names = ['m'] }")
}

fn on_hub_with(files: &str) -> Entry {
    parse(&format!(
        "[[model.source]]\nlayout = 'open-clip'\nrepo = 'o/n'\nrevision = 'main'\nfiles = [{files}]\n"
    ))
}

/// A model in the archive `x.pt` on `server`.
fn on_server(server: &Server, content: &[u8]) -> Entry {
    parse(&format!(
        "[[model.source]]\nlayout = 'openai-archive'\nurl = '{}/a/x.pt'\nsha256 = '{}'\n",
        server.url(),
        sha256(content)
    ))
}

/// Different everywhere, so that a piece at the wrong place changes the hash, and longer than the
/// buffers on the way.
fn content() -> Vec<u8> {
    (0..700_000_u32)
        .flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes())
        .collect()
}

#[test]
fn a_file_of_the_hub_lands_where_python_puts_it() {
    let server = Server::start(|r| hub(r, &content()));
    let mut bench = Bench::new(&server.url());
    let fetched = bench.fetch(&on_hub()).unwrap();

    let snapshot = bench.options.cache.snapshot("o/n", COMMIT);
    assert_eq!(fetched.directory, Some(snapshot.clone()));
    assert_eq!(fetched.path(Role::Weights), Some(&*snapshot.join("m")));
    let file = &fetched.files[0];
    assert_eq!(fs::read(&file.path).unwrap(), content());
    assert_eq!((file.bytes, &file.sha256), (2_800_000, &sha256(&content())));
    assert_eq!(file.check, Check::Hub);
    assert_eq!(
        fs::read(bench.blob(&sha256(&content()))).unwrap(),
        content()
    );
    let reference = bench.dir.path().join("hub/models--o--n/refs/main");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
    assert_eq!(bench.done.first(), Some(&0));
    assert_eq!(bench.done.last(), Some(&2_800_000));
    assert!(bench.done.is_sorted());

    let paths: Vec<_> = server
        .requests()
        .into_iter()
        .map(|r| (r.method, r.path))
        .collect();
    let path = "/o/n/resolve/main/m".to_owned();
    assert_eq!(
        paths,
        [("HEAD".to_owned(), path.clone()), ("GET".to_owned(), path)]
    );

    // The second time, nobody is asked.
    assert_eq!(bench.fetch(&on_hub()).unwrap(), fetched);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn hf_hub_finds_what_was_fetched() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut bench = Bench::new(&server.url());
    let fetched = bench.fetch(&on_hub()).unwrap();
    let theirs = hf_hub::Cache::new(bench.options.cache.hub().to_owned());
    let theirs = theirs.repo(hf_hub::Repo::model("o/n".to_owned()));
    assert_eq!(theirs.get("m").as_deref(), fetched.path(Role::Weights));
}

#[cfg(unix)]
#[test]
fn the_snapshot_links_to_the_blob_relatively() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut bench = Bench::new(&server.url());
    let entry = on_hub_with("{ role = 'weights', names = ['sub/dir/m'] }");
    let fetched = bench.fetch(&entry).unwrap();
    let target = fs::read_link(&fetched.files[0].path).unwrap();
    let expected = Path::new("../../../../blobs").join(sha256(b"content"));
    assert_eq!(target, expected);
    assert_eq!(fs::read(&fetched.files[0].path).unwrap(), b"content");
}

#[test]
fn an_archive_lands_under_its_hash() {
    let server = Server::start(|r| Reply::body(r, b"content"));
    let mut bench = Bench::new("http://127.0.0.1:9");
    bench.options.token = Token::new("hf_secret");
    let fetched = bench.fetch(&on_server(&server, b"content")).unwrap();
    assert_eq!(
        fetched.path(Role::Weights),
        Some(&*bench.archive(b"content"))
    );
    assert_eq!(fetched.layout, Layout::OpenaiArchive);
    assert_eq!(fetched.files[0].check, Check::Registry);
    // The token is for the Hub.
    assert!(!server.requests()[0].headers.contains_key("authorization"));
}

#[test]
fn redirects_are_followed_and_the_first_answer_describes_the_file() {
    let server = Server::start(|r| match &*r.path {
        // As the Hub does: relative, with the headers of the file; the target has others.
        "/o/n/resolve/main/m" => hub(r, b"content")
            .with("Location", "elsewhere/1?key=secret")
            .moved(),
        "/o/n/resolve/main/elsewhere/1?key=secret" => Reply::new(307).with("Location", "/blob"),
        "/blob" => Reply::body(r, b"content").with("ETag", "\"other\""),
        _ => Reply::new(404),
    });
    let mut bench = Bench::new(&server.url());
    let fetched = bench.fetch(&on_hub()).unwrap();
    assert_eq!(fetched.files[0].check, Check::Hub);
    assert!(bench.blob(&sha256(b"content")).is_file());
}

#[test]
fn the_token_stays_with_the_hub() {
    let store = Server::start(|r| Reply::body(r, b"content"));
    let location = format!("{}/blob", store.url());
    let server = Server::start(move |r| hub(r, b"content").with("Location", &location).moved());
    let mut bench = Bench::new(&server.url());
    bench.options.token = Token::new(" hf_secret\n");
    bench.fetch(&on_hub()).unwrap();
    for request in server.requests() {
        assert_eq!(request.headers["authorization"], "Bearer hf_secret");
    }
    // A signed link is for one GET: it is not asked for headers.
    let asked = store.requests();
    assert_eq!(asked.len(), 1);
    assert!(!asked[0].headers.contains_key("authorization"));
    assert!(!format!("{:?}", bench.options).contains("hf_secret"));
}

#[test]
fn endless_redirects_end() {
    let server = Server::start(|_| Reply::new(302).with("Location", "/again"));
    let error = Bench::new(&server.url()).fails(&on_hub()).to_string();
    assert!(error.contains("redirects more than 8 times"), "{error}");
}

#[test]
fn a_cut_connection_is_gone_on_with() {
    let server = Server::start(|r| match r.from() {
        None => hub(r, &content()).cut(1_000_000),
        Some(_) => hub(r, &content()),
    });
    let mut bench = Bench::new(&server.url());
    let fetched = bench.fetch(&on_hub()).unwrap();
    assert_eq!(fetched.files[0].sha256, sha256(&content()));
    let ranges: Vec<_> = server
        .gets()
        .iter()
        .map(|r| r.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, [None, Some("bytes=1000000-".to_owned())]);
    assert_eq!(bench.waits, [Duration::from_secs(1)]);
}

#[test]
fn what_came_is_kept_for_the_next_call() {
    let server = Server::start(|r| match r.nth {
        // Each answer of the first call brings ten bytes.
        0..3 if !r.is_head() => hub(r, &content()).cut(10),
        _ => hub(r, &content()),
    });
    let mut bench = Bench::new(&server.url());
    let error = bench.fails(&on_hub());
    assert!(
        matches!(error, ZooError::Connection { attempts: 3, .. }),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("broke off after 30 of 2800000 bytes"),
        "{error}"
    );
    assert_eq!(bench.waits, [1, 2].map(Duration::from_secs));
    assert!(bench.is_clean());
    let partial = bench.blob(&format!("{}.incomplete", sha256(&content())));
    assert_eq!(fs::read(&partial).unwrap(), content()[..30]);

    bench.done.clear();
    bench.fetch(&on_hub()).unwrap();
    assert_eq!(server.gets()[3].from(), Some(30));
    assert_eq!(bench.done[0], 30);
    assert!(!partial.exists());
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let server = Server::start(|r| {
        let mut whole = r.clone();
        whole.headers.remove("range");
        let reply = hub(&whole, &content());
        if r.nth == 0 { reply.cut(1000) } else { reply }
    });
    let mut bench = Bench::new(&server.url());
    let fetched = bench.fetch(&on_hub()).unwrap();
    assert_eq!(server.gets()[1].from(), Some(1000));
    assert_eq!(fetched.files[0].sha256, sha256(&content()));
}

#[test]
fn a_range_that_starts_elsewhere_is_not_appended() {
    let server = Server::start(|r| match (r.is_head(), r.nth) {
        (false, 0) => hub(r, b"content").cut(3),
        (false, 1) => Reply {
            body: b"xxxxx".to_vec(),
            ..Reply::new(206).with("Content-Range", "bytes 2-6/7")
        },
        _ => hub(r, b"content"),
    });
    let fetched = Bench::new(&server.url()).fetch(&on_hub()).unwrap();
    assert_eq!(fetched.files[0].sha256, sha256(b"content"));
}

#[test]
fn a_partial_file_of_another_version_is_thrown_away() {
    let server = Server::start(|r| hub(r, b"content"));
    for partial in [&b"CON"[..], b"longer than the content", b"CONTENT"] {
        let mut bench = Bench::new(&server.url());
        let path = bench.blob(&format!("{}.incomplete", sha256(b"content")));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, partial).unwrap();
        let fetched = bench.fetch(&on_hub()).unwrap();
        assert_eq!(fetched.files[0].sha256, sha256(b"content"));
    }
}

#[test]
fn a_partial_archive_that_is_whole_is_not_fetched_again() {
    let server = Server::start(|r| Reply::body(r, b"content"));
    let mut bench = Bench::new("http://127.0.0.1:9");
    let path = bench.archive(b"content").with_extension("pt.incomplete");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, b"content").unwrap();
    bench.fetch(&on_server(&server, b"content")).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].from(), Some(7));
}

#[test]
fn an_announced_length_that_is_not_the_files_is_an_error() {
    for announced in ["3", "20"] {
        let server = Server::start(move |r| match r.is_head() {
            true => hub(r, b"content"),
            false => hub(r, b"content").with("Content-Length", announced),
        });
        let mut bench = Bench::new(&server.url());
        let error = bench.fails(&on_hub());
        let text = error.to_string();
        assert!(
            matches!(error, ZooError::Length { expected: 7, .. }),
            "{text}"
        );
        assert!(text.contains(announced), "{text}");
        assert!(bench.is_clean());
    }
}

#[test]
fn an_archive_of_a_wrong_length_is_not_used() {
    // Shorter: what was announced comes, and is not the file.
    let server = Server::start(|r| Reply::body(r, b"content").with("Content-Length", "3"));
    let mut bench = Bench::new("http://127.0.0.1:9");
    let error = bench.fails(&on_server(&server, b"content"));
    assert!(matches!(error, ZooError::Checksum { .. }), "{error}");
    assert!(bench.is_clean());
    // Longer: it never all comes.
    let server = Server::start(|r| match r.from() {
        None => Reply::body(r, b"content").with("Content-Length", "20"),
        Some(_) => Reply {
            body: Vec::new(),
            ..Reply::new(206).with("Content-Range", "bytes 7-19/20")
        },
    });
    let error = bench.fails(&on_server(&server, b"content")).to_string();
    assert!(error.contains("broke off after 7 of 20 bytes"), "{error}");
    assert!(bench.is_clean());
}

#[test]
fn a_file_of_another_hash_is_deleted_and_both_hashes_are_named() {
    let server = Server::start(|r| match r.is_head() {
        true => hub(r, b"content"),
        false => hub(r, b"CONTENT"),
    });
    let mut bench = Bench::new(&server.url());
    let text = bench.fails(&on_hub()).to_string();
    assert!(
        text.contains(&sha256(b"content")) && text.contains(&sha256(b"CONTENT")),
        "{text}"
    );
    assert!(text.contains("the download was deleted"), "{text}");
    assert!(
        !bench
            .blob(&format!("{}.incomplete", sha256(b"content")))
            .exists()
    );
    assert!(bench.is_clean());
    // Once is enough: what came was not there before.
    assert_eq!(server.gets().len(), 1);
}

#[test]
fn the_registry_is_believed_more_than_the_hub() {
    let server = Server::start(|r| hub(r, b"CONTENT"));
    let hash = sha256(b"content");
    let entry = on_hub_with(&format!(
        "{{ role = 'weights', names = ['m'], sha256 = '{hash}' }}"
    ));
    let mut bench = Bench::new(&server.url());
    let text = bench.fails(&entry).to_string();
    assert!(
        text.contains(&hash) && text.contains(&sha256(b"CONTENT")),
        "{text}"
    );
    // Gigabytes are not fetched to find out.
    assert_eq!(server.gets().len(), 0);
    assert!(bench.is_clean());
}

#[test]
fn a_small_file_is_checked_by_its_length() {
    let etag = "a".repeat(40);
    let quoted = format!("W/\"{etag}\"");
    let server = Server::start(move |r| {
        Reply::body(r, b"{}")
            .with("X-Repo-Commit", COMMIT)
            .with("ETag", &quoted)
    });
    let mut bench = Bench::new(&server.url());
    let fetched = bench.fetch(&on_hub()).unwrap();
    assert_eq!(fetched.files[0].check, Check::LengthOnly);
    assert_eq!(fs::read(bench.blob(&etag)).unwrap(), b"{}");
}

#[test]
fn a_corrupt_file_in_the_cache_is_set_aside_and_fetched_again() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut bench = Bench::new(&server.url());
    let path = bench.fetch(&on_hub()).unwrap().files[0].path.clone();
    let blob = bench.blob(&sha256(b"content"));
    fs::write(&blob, b"CONTENT").unwrap();

    bench.options.offline = true;
    assert!(matches!(bench.fails(&on_hub()), ZooError::Checksum { .. }));
    bench.options.offline = false;
    bench.fetch(&on_hub()).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"content");
    let aside = blob.with_extension("corrupt");
    assert_eq!(fs::read(aside).unwrap(), b"CONTENT");
}

#[test]
fn openais_download_that_is_corrupt_is_left_alone() {
    let server = Server::start(|r| Reply::body(r, b"content"));
    let mut bench = Bench::new("http://127.0.0.1:9");
    let theirs = bench.dir.path().join("x.pt");
    fs::write(&theirs, b"cont").unwrap();
    bench.options.cache = bench.options.cache.clone().with_openai(bench.dir.path());
    let fetched = bench.fetch(&on_server(&server, b"content")).unwrap();
    assert_eq!(fetched.files[0].path, bench.archive(b"content"));
    assert_eq!(fs::read(theirs).unwrap(), b"cont");
}

#[test]
fn a_missing_file_is_named_with_repository_and_revision() {
    let server = Server::start(|_| Reply::new(404));
    let mut bench = Bench::new(&server.url());
    let entry = on_hub_with("{ role = 'weights', names = ['m.safetensors', 'm.bin'] }");
    let text = bench.fails(&entry).to_string();
    for part in [
        "m.safetensors or m.bin",
        "o/n",
        "revision main",
        "check the repository",
        "by hand",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(server.requests().len(), 2);
    assert_eq!(bench.waits, []);
}

#[test]
fn the_first_name_that_is_there_is_taken_and_all_files_are_of_one_commit() {
    let server = Server::start(|r| match r.path.rsplit('/').next() {
        Some("m.bin") => hub(r, b"weights"),
        Some("c.json") => hub(r, b"config"),
        _ => Reply::new(404),
    });
    let mut bench = Bench::new(&server.url());
    let entry = on_hub_with(
        "{ role = 'weights', names = ['m.safetensors', 'm.bin'] }, { role = 'config', names = ['c.json'] }, \
         { role = 'tokenizer', repo = 'p/q', names = ['c.json'] }",
    );
    let fetched = bench.fetch(&entry).unwrap();
    assert!(fetched.path(Role::Weights).unwrap().ends_with("m.bin"));
    // One of them lies in another repository.
    assert_eq!(fetched.directory, None);
    let paths: Vec<_> = server.gets().into_iter().map(|r| r.path).collect();
    let expected = [
        "/o/n/resolve/main/m.bin".to_owned(),
        format!("/o/n/resolve/{COMMIT}/c.json"),
        "/p/q/resolve/main/c.json".to_owned(),
    ];
    assert_eq!(paths, expected);
    assert_eq!(bench.options.cache.lookup(&entry, None).unwrap(), fetched);
}

#[test]
fn the_name_leads_to_the_former_files_until_all_new_ones_are_there() {
    let server = Server::start(|r| match r.path.ends_with("/m") {
        true => hub(r, b"content"),
        false => Reply::new(404),
    });
    let mut bench = Bench::new(&server.url());
    let reference = bench.dir.path().join("hub/models--o--n/refs/main");
    fs::create_dir_all(reference.parent().unwrap()).unwrap();
    fs::write(&reference, "former").unwrap();
    let files = "{ role = 'weights', names = ['m'] }, { role = 'config', names = ['c'] }";
    let error = bench.fails(&on_hub_with(files));
    assert!(matches!(error, ZooError::NotFound { .. }), "{error}");
    assert_eq!(fs::read_to_string(&reference).unwrap(), "former");
    bench.fetch(&on_hub()).unwrap();
    assert_eq!(fs::read_to_string(&reference).unwrap(), COMMIT);
    // The weights of the first call are used, not fetched again.
    assert_eq!(server.gets().len(), 1);
}

#[test]
fn a_gated_repository_asks_for_a_token() {
    for status in [401, 403] {
        let server = Server::start(move |_| Reply::new(status));
        let mut bench = Bench::new(&server.url());
        bench.options.token = Token::new("hf_secret");
        let text = bench.fails(&on_hub()).to_string();
        assert!(text.contains("HF_TOKEN") && text.contains("o/n"), "{text}");
        assert!(
            text.contains(&status.to_string()) && !text.contains("hf_secret"),
            "{text}"
        );
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn a_limited_rate_is_obeyed() {
    let server = Server::start(|r| match r.nth {
        0 => Reply::new(429).with("Retry-After", "7"),
        _ => hub(r, b"content"),
    });
    let mut bench = Bench::new(&server.url());
    bench.fetch(&on_hub()).unwrap();
    // Once for the headers, once for the content.
    assert_eq!(bench.waits, [7, 7].map(Duration::from_secs));
}

#[test]
fn a_rate_that_stays_limited_is_an_error() {
    let server = Server::start(|_| Reply::new(429).with("Retry-After", "7"));
    let mut bench = Bench::new(&server.url());
    let error = bench.fails(&on_hub());
    let text = error.to_string();
    assert!(
        matches!(error, ZooError::RateLimited { attempts: 3, .. }),
        "{text}"
    );
    assert!(
        text.contains("asks to wait 7 s") && text.contains("HF_TOKEN"),
        "{text}"
    );
    assert_eq!(bench.waits.len(), 2);
}

#[test]
fn a_wait_of_an_hour_is_reported_instead() {
    let server = Server::start(|_| Reply::new(429).with("Retry-After", "3600"));
    let mut bench = Bench::new(&server.url());
    let text = bench.fails(&on_hub()).to_string();
    assert!(
        text.contains("asks to wait 3600 s; gave up after 1 attempt"),
        "{text}"
    );
    assert_eq!(bench.waits, []);
}

#[test]
fn an_error_of_the_server_is_tried_again() {
    let server = Server::start(|r| match r.nth {
        0 => Reply::new(503),
        _ => hub(r, b"content"),
    });
    let mut bench = Bench::new(&server.url());
    bench.fetch(&on_hub()).unwrap();
    let server = Server::start(|_| Reply::new(500));
    let mut bench = Bench::new(&server.url());
    let error = bench.fails(&on_hub());
    assert!(
        matches!(
            error,
            ZooError::Status {
                status: 500,
                attempts: 3,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn nobody_there_is_an_error_after_some_attempts() {
    // Nothing listens on the first port.
    let mut bench = Bench::new("http://me:secret@127.0.0.1:1");
    let error = bench.fails(&on_hub());
    let text = error.to_string();
    assert!(
        matches!(error, ZooError::Connection { attempts: 3, .. }),
        "{text}"
    );
    assert!(
        text.contains("refused") && !text.contains("secret"),
        "{text}"
    );
    assert!(bench.is_clean());
}

#[test]
fn an_endpoint_that_is_no_url_is_not_repeated() {
    let text = Bench::new("ftp://me:secret@host")
        .fails(&on_hub())
        .to_string();
    assert_eq!(text, "HF_ENDPOINT: is not an http or https URL");
}

#[test]
fn a_server_that_is_no_hub_is_an_error() {
    let server = Server::start(|r| Reply::body(r, b"<html>"));
    let text = Bench::new(&server.url()).fails(&on_hub()).to_string();
    assert!(text.contains("X-Repo-Commit is missing"), "{text}");
}

#[test]
fn names_from_a_server_do_not_leave_the_cache() {
    for (header, value) in [
        ("X-Linked-Etag", "../../x"),
        ("X-Repo-Commit", ".."),
        ("X-Linked-Etag", "\"\""),
    ] {
        let server = Server::start(move |r| hub(r, b"content").with(header, value));
        let mut bench = Bench::new(&server.url());
        let error = bench.fails(&on_hub());
        assert!(matches!(error, ZooError::Answer { .. }), "{error}");
        assert_eq!(server.gets().len(), 0);
        assert!(bench.is_clean());
    }
}

#[test]
fn offline_uses_the_cache_only() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut bench = Bench::new(&server.url());
    bench.options.offline = true;
    let text = bench.fails(&on_hub()).to_string();
    assert!(
        text.contains("`a/b` is not in the cache") && text.contains("HF_HUB_OFFLINE"),
        "{text}"
    );
    assert!(server.requests().is_empty());
    bench.options.offline = false;
    bench.fetch(&on_hub()).unwrap();
    bench.options.offline = true;
    bench.fetch(&on_hub()).unwrap();
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn the_file_appears_when_it_is_whole() {
    let server = Server::start(|r| Reply::body(r, &content()));
    let entry = on_server(&server, &content());
    let bench = Bench::new("http://127.0.0.1:9");
    let path = bench.archive(&content());
    let mut seen = Vec::new();
    let mut progress = |_: Progress<'_>| seen.push(path.exists());
    fetch_with(&entry, &bench.options, &mut progress, &mut |_| ()).unwrap();
    assert!(seen.len() > 2 && seen.iter().all(|there| !there));
    assert!(path.exists());
}

#[test]
fn two_threads_fetch_once() {
    let server = Server::start(|r| hub(r, &content()));
    let bench = Bench::new(&server.url());
    let start = Arc::new(Barrier::new(2));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (options, start) = (bench.options.clone(), start.clone());
            thread::spawn(move || {
                start.wait();
                fetch_with(&on_hub(), &options, &mut |_| (), &mut |_| ()).unwrap()
            })
        })
        .collect();
    let fetched: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!(fetched[0], fetched[1]);
    assert_eq!(fetched[0].files[0].sha256, sha256(&content()));
    assert_eq!(server.gets().len(), 1);
}

#[test]
fn the_next_source_is_tried_but_not_after_a_wrong_hash() {
    let server = Server::start(|r| match &*r.path {
        "/gone/x.pt" => Reply::new(410),
        "/bad/x.pt" => Reply::body(r, b"CONTENT"),
        "/o/n/resolve/main/m" => hub(r, b"content"),
        _ => Reply::new(404),
    });
    let entry = |path: &str, file: &str| {
        parse(&format!(
            "[[model.source]]\nlayout = 'openai-archive'\nurl = '{}/{path}/x.pt'\nsha256 = '{}'\n\
             [[model.source]]\nlayout = 'open-clip'\nrepo = 'o/n'\nrevision = 'main'\nfiles = [{{ role = 'weights', names = ['{file}'] }}]\n",
            server.url(),
            sha256(b"content")
        ))
    };
    let mut bench = Bench::new(&server.url());
    let fetched = bench.fetch(&entry("gone", "m")).unwrap();
    assert_eq!(fetched.layout, Layout::OpenClip);
    let error = bench.fails(&entry("gone", "nothing"));
    let text = error.to_string();
    assert!(matches!(error, ZooError::Sources { .. }), "{text}");
    assert!(text.contains("410") && text.contains("nothing"), "{text}");
    let mut bench = Bench::new(&server.url());
    assert!(matches!(
        bench.fails(&entry("bad", "m")),
        ZooError::Checksum { .. }
    ));
}

#[test]
fn a_layout_can_be_asked_for() {
    let server = Server::start(|r| hub(r, b"content"));
    let mut bench = Bench::new(&server.url());
    bench.options.layout = Some(Layout::Transformers);
    let text = bench.fails(&on_hub()).to_string();
    assert_eq!(text, "`a/b` has no source in layout transformers");
    bench.options.layout = Some(Layout::OpenClip);
    bench.fetch(&on_hub()).unwrap();
}

#[test]
fn the_environment_of_python_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap().to_owned();
    fs::write(dir.path().join("token"), "hf_file\n").unwrap();
    let options = |vars: &[(&str, &str)]| {
        let var = |name: &str| match name {
            "HF_HOME" => Some(OsString::from(&home)),
            _ => vars
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| OsString::from(v)),
        };
        FetchOptions::from_vars(&var, None).unwrap()
    };
    let plain = options(&[]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert!(!plain.offline);
    assert_eq!(plain.token, Token::new("hf_file"));
    assert_eq!(plain.cache, Cache::at(dir.path()));
    let set = options(&[
        ("HF_ENDPOINT", "https://mirror.example/"),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_TOKEN", "hf_var"),
        ("HF_HUB_CACHE", "/c"),
    ]);
    assert_eq!(set.endpoint, "https://mirror.example");
    assert!(set.offline);
    assert_eq!(set.token, Token::new("hf_var"));
    assert_eq!(set.cache.hub(), Path::new("/c"));
    assert_eq!(
        options(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")]).token,
        None
    );
    assert!(!options(&[("HF_HUB_OFFLINE", "0")]).offline);
}
