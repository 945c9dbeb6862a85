//! Compiles the `.proto` files without a system `protoc`, and writes the descriptor set for reflection.
use prost::Message as _;

const FILES: [&str; 17] = [
    "google/rpc/status.proto",
    "carillon/v1/messages.proto",
    "carillon/v1/appointments.proto",
    "carillon/admin/v1/admin.proto",
    "carillon/admin/v1/delivery.proto",
    "carillon/internal/v1/changes.proto",
    "carillon/admin/v1/lane.proto",
    "carillon/internal/v1/command.proto",
    "carillon/internal/v1/record.proto",
    "carillon/internal/v1/lane.proto",
    "carillon/internal/v1/member.proto",
    "carillon/internal/v1/route.proto",
    "carillon/internal/v1/meta.proto",
    "carillon/internal/v1/snapshot.proto",
    "carillon/internal/v1/peer.proto",
    "carillon/internal/v1/steward.proto",
    "carillon/internal/v1/node.proto",
];

/// Messages that carry plaintext of patients: their `Debug` is written by hand and prints nothing of it.
const PLAINTEXT: [&str; 20] = [
    ".carillon.v1.MessageSpec.recipient",
    ".carillon.v1.MessageSpec",
    ".carillon.v1.NationalNumber",
    ".carillon.v1.Message",
    ".carillon.v1.AcceptedMessage",
    ".carillon.v1.ListMessagesRequest",
    ".carillon.v1.CancelMessagesRequest",
    ".carillon.v1.CancelResult",
    ".carillon.internal.v1.IngestMessage",
    ".carillon.internal.v1.MessageDetails",
    ".carillon.internal.v1.NodeCancelRequest",
    ".carillon.v1.UpdateAppointmentRequest",
    ".carillon.v1.MessageChange",
    ".carillon.internal.v1.NodeChange",
    ".carillon.internal.v1.NodeUpdateRequest",
    ".carillon.v1.CreateSeriesRequest",
    ".carillon.internal.v1.SeriesPlan",
    ".carillon.internal.v1.NodeCreateSeries",
    ".carillon.internal.v1.NodeSeriesRequest",
    ".carillon.internal.v1.NodeSeriesRequest.action",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=carillon");
    println!("cargo:rerun-if-changed=google");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let mut config = prost_build::Config::new();
    config.bytes(["."]).skip_debug(PLAINTEXT).include_file("api.rs");
    if std::env::var_os("CARGO_FEATURE_EDGE").is_some() {
        tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    } else {
        config.compile_fds(descriptors)?;
    }
    Ok(())
}
