//! The shape of a kind of call, in the format of the programs and for one process.

use monitor_ebpf::{
    CodeRange, Given, LABELS, Messages, NO_SCRATCH, Shape, Sited, policy, stream, window_use,
};

use super::SitedCall;
use crate::{
    frameworks::KindSpec,
    plan::{
        Refusal, Wanted,
        layout::{Asked, Needs, Windows, as_program},
        recipe::{argument, moved},
        shape::side_code,
    },
};

/// The maximum length of a text that the programs compare, in bytes.
const TEXT_MAX: usize = 8;

impl SitedCall {
    /// Returns the shape for a process whose executable is loaded `bias` bytes above its link-time addresses.
    pub(in crate::plan) fn to_shape(&self, bias: u64, wanted: Wanted) -> Result<Shape, Refusal> {
        let messages = self.messages.filter(|_| wanted.grpc_messages);
        let windows = self.needs(messages.is_some()).windows(None)?;
        let mut labels = [NO_SCRATCH; LABELS];
        if let Some(label) = labels.first_mut() {
            *label = windows.at(self.method);
        }
        let mut sited = Sited {
            key_at: self.key.map_or(NO_SCRATCH, |key| windows.at(key)),
            policy: self.policy(),
            messages: messages.map_or(Messages::NONE, |messages| messages.to_messages(bias)),
            ..Sited::UNUSED
        };
        self.put_start(&mut sited, bias)?;
        self.put_ends(&mut sited, bias)?;
        self.put_status(&mut sited, &windows, bias);
        self.put_kind(&mut sited, &windows);
        self.put_conditions(&mut sited, &windows);
        let windows = as_program(bias, [&windows])?;
        Ok(Shape { side: side_code(self.spec.side), labels, windows, sited, ..Shape::UNUSED })
    }

    fn put_start(&self, sited: &mut Sited, bias: u64) -> Result<(), Refusal> {
        let Some((address, entry)) = self.start else { return Ok(()) };
        sited.start = moved(address, bias);
        sited.start_object = argument(entry.object)? as u8;
        sited.start_key = sited.start_object;
        sited.start_argument = argument(entry.second)? as u8;
        Ok(())
    }

    fn put_ends(&self, sited: &mut Sited, bias: u64) -> Result<(), Refusal> {
        let entry = self.ends.entry;
        sited.finish_object = argument(entry.object)? as u8;
        sited.finish_key = sited.finish_object;
        sited.finish_argument = argument(entry.second)? as u8;
        sited.finish_error = argument(entry.error.unwrap_or(entry.second))? as u8;
        sited.kept_at = self.ends.kept_at;
        for (place, address) in sited.finishes.iter_mut().zip(&self.ends.sites) {
            *place = moved(*address, bias);
        }
        let Given { place, word, .. } = self.given;
        sited.given = Given { place: moved(place, bias), word: moved(word, bias), ..self.given };
        for (place, (start, end)) in sited.interim.iter_mut().zip(&self.interim) {
            *place = CodeRange { start: moved(*start, bias), length: end - start };
        }
        Ok(())
    }

    fn put_status(&self, sited: &mut Sited, windows: &Windows<'_>, bias: u64) {
        let status = &self.status;
        sited.message_at = windows.at(status.message);
        sited.code_at = windows.at(status.code);
        sited.status_word = moved(status.error, bias);
        sited.well_word = moved(status.well, bias);
        let text = status.well_text.as_bytes();
        let text = text.get(..TEXT_MAX).unwrap_or(text);
        for (index, byte) in text.iter().enumerate() {
            sited.well_text |= u64::from(*byte) << (8 * index);
        }
        sited.well_length = u8::try_from(text.len()).unwrap_or(0);
        let (wrap_word, wrap_at) = status.wrap;
        sited.wrap_word = moved(wrap_word, bias);
        sited.wrap_at = wrap_at;
    }

    /// Writes how the kind of stream is found.
    fn put_kind(&self, sited: &mut Sited, windows: &Windows<'_>) {
        match (&self.spec.kind, self.streams) {
            (KindSpec::Unary, _) => sited.kind = stream::UNARY,
            (_, Some([client, server])) => {
                sited.client_streams_at = windows.at(client);
                sited.server_streams_at = windows.at(server);
            }
            _ => {}
        }
    }

    fn put_conditions(&self, sited: &mut Sited, windows: &Windows<'_>) {
        let conditions = &self.conditions;
        if let Some(begins) = &conditions.begins {
            sited.begins = windows.test(begins);
        }
        if let Some(first) = &conditions.first {
            sited.first = windows.test(first);
        }
        for (place, gate) in sited.gates.iter_mut().zip(&conditions.gates) {
            *place = windows.test(gate);
        }
    }

    fn policy(&self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.spec.first_finish, policy::FIRST_FINISH)
            | bit(self.kind_is_in_object(), policy::KIND_AT_FINISH)
            | policy::COUNT_STARTS
    }

    fn kind_is_in_object(&self) -> bool {
        matches!(self.spec.kind, KindSpec::Object(..))
    }

    fn needs(&self, messages: bool) -> Needs<'_> {
        // The start stores them. The finish needs them if the start was not seen.
        let both = window_use::START | window_use::UNTOLD;
        let mut needs = Needs::new(&self.nodes);
        needs.add(self.method, 16, both | if messages { window_use::MESSAGE } else { 0 });
        if let Some(key) = self.key {
            needs.add(key, 8, window_use::KEY);
        }
        let kind = if self.kind_is_in_object() { both } else { window_use::START };
        for place in self.streams.into_iter().flatten() {
            needs.add(place, 1, kind);
        }
        needs.add(self.status.message, 8, window_use::FINISH);
        needs.add(self.status.code, 4, window_use::FINISH);
        let mut ask = |asked: &Asked, usage| {
            for place in &asked.places {
                needs.add(*place, u64::from(asked.width), usage);
            }
        };
        self.conditions.begins.iter().for_each(|begins| ask(begins, window_use::START));
        self.conditions.first.iter().for_each(|first| ask(first, window_use::UNTOLD));
        self.conditions.gates.iter().for_each(|gate| ask(gate, window_use::FINISH));
        needs
    }
}
