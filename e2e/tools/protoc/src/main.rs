//! As much of `protoc` as build scripts with prost-build ask for, by protox: compiles files to a descriptor set.

use std::{env, fs, path::PathBuf, process::ExitCode};

/// What the command line asks for.
#[derive(Default)]
struct Request {
    imports: bool,
    source_info: bool,
    output: Option<PathBuf>,
    includes: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match request().and_then(|request| compile(&request)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("protoc-by-protox: {error}");
            ExitCode::FAILURE
        }
    }
}

fn request() -> Result<Request, String> {
    let mut request = Request::default();
    let mut arguments = env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().map(PathBuf::from).ok_or("the last argument lacks its value");
        match argument.to_str() {
            Some("--include_imports") => request.imports = true,
            Some("--include_source_info") => request.source_info = true,
            Some("-o") => request.output = Some(value()?),
            Some("-I") => request.includes.push(value()?),
            Some(other) if other.starts_with('-') => {
                return Err(format!("{other} is not known: install protoc, or set PROTOC to one"));
            }
            _ => request.files.push(argument.into()),
        }
    }
    Ok(request)
}

fn compile(request: &Request) -> Result<(), String> {
    let output = request.output.as_ref().ok_or("-o FILE is missing: nothing but descriptor sets is made")?;
    let mut compiler = protox::Compiler::new(&request.includes).map_err(|error| error.to_string())?;
    compiler.include_imports(request.imports).include_source_info(request.source_info);
    compiler.open_files(&request.files).map_err(|error| error.to_string())?;
    let set = compiler.encode_file_descriptor_set();
    fs::write(output, set).map_err(|error| format!("cannot write {}: {error}", output.display()))
}
