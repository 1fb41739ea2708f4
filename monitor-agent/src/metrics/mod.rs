//! Metric families: the names and labels for the numbers of the pipeline and of `/proc`.
//!
//! Each view takes a snapshot and projects it onto the names and labels of the code that it stands in for. Series that
//! become equal by this are summed.

mod about;
mod family;
mod go;
mod grpc;
mod kitex;
mod operations;
pub mod otel;
mod overhead;
pub mod process;
mod selection;
mod underway;

pub use about::{
    AgentStats, EventStats, FrameworkStats, LatencySource, PushStats, SiteStats, TargetStats, UnexpectedType,
    about,
};
pub use family::{FamilyBuilder, merge};
pub use go::go;
pub use grpc::{GrpcView, grpc};
pub use kitex::{KitexView, Label, LabelSelection, LabelsError, kitex};
pub use operations::operations;
pub use overhead::{CostStats, OverheadStats, SheddingStats};
pub use selection::{Family, Selection, SelectionError};
pub use underway::{UnderwayCalls, underway, underway_grpc};
