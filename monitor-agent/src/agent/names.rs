//! What is needed of the executable to decode label sets.

use std::sync::Arc;

use super::{attached::Place, prepare::Executable};
use crate::{
    frameworks::Family,
    pipeline,
    plan::{Found, OfSpec, Plan},
    specs::Operation,
};

/// See the [module](self).
#[derive(Clone)]
pub(super) struct Names {
    executable: Arc<Executable>,
    bias: u64,
    /// Index of the framework in the executable.
    framework: usize,
}

impl Names {
    /// Creates the names for a framework of the target's executable.
    pub(super) fn new(place: &Place, framework: usize) -> Self {
        Self { executable: Arc::clone(&place.executable), bias: place.bias, framework }
    }

    fn found(&self) -> Option<&Found> {
        self.executable.inspection.frameworks.get(self.framework)
    }

    fn plan(&self) -> Option<&Plan> {
        self.found()?.plan.as_ref().ok()
    }

    fn spec(&self) -> Option<&OfSpec> {
        self.found()?.spec.as_ref()
    }

    fn operation(&self, number: u8) -> Option<&Operation> {
        self.spec()?.spec.operations.get(usize::from(number))
    }
}

impl pipeline::Executable for Names {
    fn framework(&self) -> pipeline::Framework {
        if let Some(OfSpec { number, first, .. }) = self.spec() {
            return pipeline::Framework::Spec { spec: *number, operation: *first };
        }
        match self.found().and_then(|found| found.family) {
            Some(Family::Grpc) => pipeline::Framework::Grpc,
            Some(Family::Kitex) | None => pipeline::Framework::Kitex,
        }
    }

    fn reads_any_number(&self, operation: u8) -> bool {
        self.operation(operation).is_some_and(Operation::reads_any_number)
    }

    fn fails(&self, operation: u8, number: Option<u32>) -> bool {
        self.operation(operation).is_some_and(|operation| operation.fails(number))
    }

    fn tells_retries(&self) -> bool {
        self.plan().is_none_or(Plan::tells_retries)
    }

    fn constant(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        self.executable.image.read_only(address.wrapping_sub(self.bias), length)
    }

    fn error_class(&self, offset: u32) -> &'static str {
        let image = &self.executable.image;
        let address = image.link_base().wrapping_add(offset.into());
        self.plan().map_or("other", |plan| plan.error_class(image, address))
    }

    fn protocol(&self, number: u16) -> Option<String> {
        self.plan().map(|plan| plan.protocol(number))
    }
}
