//! Build script that links the system's BLAS with feature `blas`.

/// The environment variable that names the pkg-config package of the BLAS, such as `blis`.
const PACKAGE: &str = "HOST_GEMM_PACKAGE";

fn main() {
    println!("cargo:rerun-if-env-changed={PACKAGE}");
    #[cfg(feature = "blas")]
    blas();
}

#[cfg(feature = "blas")]
fn blas() {
    let package = std::env::var(PACKAGE).unwrap_or_else(|_| "openblas".to_owned());
    if let Err(error) = link(&package) {
        // Cargo shows the standard error of a build script that fails.
        eprintln!("\nhost-gemm: {error}\n");
        std::process::exit(1);
    }
}

#[cfg(feature = "blas")]
fn link(package: &str) -> Result<(), String> {
    // docs.rs has no BLAS, and documentation needs none.
    if std::env::var_os("DOCS_RS").is_some() {
        return Ok(());
    }
    let install = "Debian: apt-get install libopenblas-dev pkg-config";
    let library = pkg_config::Config::new()
        .cargo_metadata(false)
        .probe(package)
        .map_err(|error| {
            let reason = match &error {
                pkg_config::Error::Command { .. } => "pkg-config is not installed".to_owned(),
                _ => format!("pkg-config knows no package `{package}`"),
            };
            format!(
                "feature `blas` needs a BLAS with its C interface: {reason}.\n{install}\n\
                 Or name another package: {PACKAGE}=blis. Or build without the feature."
            )
        })?;
    let settings = pkg_config::get_variable(package, "openblas_config").unwrap_or_default();
    let is_ilp64 = |name: &str| name.ends_with("64") || name.contains("ilp64");
    if is_ilp64(package)
        || library.libs.iter().any(|name| is_ilp64(name))
        || settings
            .split_whitespace()
            .any(|word| word == "USE_64BITINT=1")
    {
        return Err(format!(
            "the BLAS of package `{package}` has 64-bit integers, and this crate calls it with \
             32-bit ones.\n{install}"
        ));
    }
    for path in &library.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    for name in &library.libs {
        println!("cargo:rustc-link-lib=dylib={name}");
    }
    Ok(())
}
