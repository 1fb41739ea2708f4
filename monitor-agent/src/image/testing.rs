//! Small Go-like executables for the tests: everything that [`Image`](super::Image) reads, at known
//! addresses, in the layout of any supported release, with or without sections and relocations.

mod kitex;

/// The address of the code.
pub(crate) const TEXT: u64 = 0x40_1000;
/// The address of the read-only data.
pub(crate) const RODATA: u64 = 0x40_1200;
/// The address of the writable data.
pub(crate) const DATA: u64 = 0x40_2400;
/// The difference between addresses and file offsets.
pub(crate) const BASE: u64 = 0x40_0c00;
/// The functions, in order: name and code.
pub(crate) const FUNCTIONS: [(&str, &[u8]); 3] = [
    ("example.com/pkg.(*T).Do", &[0x55, 0x48, 0x89, 0xe5, 0x5d, 0xc3, 0xcc, 0xcc]),
    ("example.com/pkg.leaf", &[0x48, 0x8d, 0x04, 0x40, 0xc3, 0xcc, 0xcc, 0xcc]),
    ("main.main", &[0xc3, 0xcc, 0xcc, 0xcc]),
];

/// The code of every function that a file can have.
pub(crate) fn functions() -> impl Iterator<Item = &'static [u8]> {
    FUNCTIONS.into_iter().chain(kitex::FUNCTIONS).map(|(_, code)| code)
}

/// What to build.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is something that a file has or not, whatever else it has"
)]
pub(crate) struct GoFile {
    /// The Go release whose layout is used.
    pub minor: u32,
    /// The version in the build info.
    pub version: String,
    /// Position-independent: pointers are only in the relocations.
    pub pie: bool,
    /// With section headers.
    pub sections: bool,
    /// Sections that are not mapped: name, flags, contents.
    pub unmapped: Vec<(&'static str, u64, Vec<u8>)>,
    /// With the functions and types of Kitex that a plan needs.
    pub kitex: bool,
    /// The first function is inlined into the second.
    pub inlined: bool,
    /// A function of this name is inlined too, and is not in the function table.
    pub dissolved: Option<&'static str>,
    /// Functions after all others: name and code.
    pub more: Vec<(&'static str, &'static [u8])>,
}

impl GoFile {
    /// A file as Go's release 1.`minor` would write it.
    pub(crate) fn of_release(minor: u32) -> Self {
        Self {
            minor,
            version: format!("go1.{minor}.3"),
            pie: false,
            sections: true,
            unmapped: Vec::new(),
            kitex: false,
            inlined: false,
            dissolved: None,
            more: Vec::new(),
        }
    }

    fn has_tree(&self) -> bool {
        self.inlined || self.dissolved.is_some()
    }

    /// Returns the file, and the addresses of its parts.
    pub(crate) fn build(&self) -> (Vec<u8>, Places) {
        Builder::new(self.clone()).build()
    }
}

/// Addresses of the parts of a built file.
#[derive(Clone, Copy, Default)]
pub(crate) struct Places {
    /// The function table's header.
    pub table: u64,
    /// The start of the rows of the function table.
    pub rows: u64,
    /// The names of the functions.
    pub names: u64,
    /// `*pkg.T`.
    pub pointer: u64,
    /// `pkg.T`, a struct.
    pub object: u64,
    /// `pkg.I`, an interface with two methods.
    pub interface: u64,
    /// The first field of `pkg.T` in the array of its fields.
    pub fields: u64,
    /// The module data.
    pub module: u64,
    /// The build info.
    pub build_info: u64,
    /// A pointer to `*pkg.T` in writable data.
    pub variable: u64,
}

struct Builder {
    file: GoFile,
    places: Places,
    functions: Vec<(&'static str, &'static [u8])>,
    rodata: Vec<u8>,
    data: Vec<u8>,
    relocations: Vec<(u64, u64)>,
    /// The address of the function data.
    function_data: u64,
}

impl Builder {
    fn new(file: GoFile) -> Self {
        let mut functions = FUNCTIONS.to_vec();
        if file.kitex {
            functions.extend(kitex::FUNCTIONS);
        }
        functions.extend(file.more.iter().copied());
        Self {
            file,
            places: Places::default(),
            functions,
            rodata: Vec::new(),
            data: Vec::new(),
            relocations: Vec::new(),
            function_data: 0,
        }
    }

    fn build(mut self) -> (Vec<u8>, Places) {
        let types = self.types();
        self.table();
        self.build_info();
        self.module(types);
        self.places.variable = DATA + self.data.len() as u64;
        self.pointer_in_data(self.places.pointer);
        (self.file(), self.places)
    }

    // Pointers: stored in place, or as relocations.

    fn pointer_value(&mut self, at: u64, value: u64) -> [u8; 8] {
        if self.file.pie && value != 0 {
            self.relocations.push((at, value));
            return [0; 8];
        }
        value.to_le_bytes()
    }

    fn pointer_in_rodata(&mut self, value: u64) {
        let bytes = self.pointer_value(RODATA + self.rodata.len() as u64, value);
        self.rodata.extend(bytes);
    }

    fn pointer_in_data(&mut self, value: u64) {
        let bytes = self.pointer_value(DATA + self.data.len() as u64, value);
        self.data.extend(bytes);
    }

    fn slice_in_data(&mut self, address: u64, len: usize) {
        self.pointer_in_data(address);
        self.data.extend((len as u64).to_le_bytes());
        self.data.extend((len as u64).to_le_bytes());
    }

    fn here(&mut self) -> u64 {
        while !self.rodata.len().is_multiple_of(8) {
            self.rodata.push(0);
        }
        RODATA + self.rodata.len() as u64
    }

    // Types: `pkg.T { base struct; Name string }`, `*pkg.T`, `pkg.I`, `string`.

    fn types(&mut self) -> (u64, u64, u64, u64) {
        let start = self.here();
        self.rodata.extend([0; 8]);
        let [object, interface, string] = ["*pkg.T", "*pkg.I", "*string"].map(|name| self.text(1, name));
        let package = self.text(0, "example.com/pkg");
        let (base, field) = (self.text(8, "base"), self.text(1, "Name"));

        let string_type = self.here();
        self.header(16, 2, 24, string);
        self.places.fields = self.here();
        for (name, offset, embedded) in [(base, 0_u64, true), (field, 16, false)] {
            self.pointer_in_rodata(start + u64::from(name));
            self.pointer_in_rodata(string_type);
            let shifted = (offset << 1) | u64::from(embedded);
            self.rodata.extend(if self.file.minor <= 18 { shifted } else { offset }.to_le_bytes());
        }
        self.places.object = self.here();
        self.header(32, 3, 25, object);
        self.pointer_in_rodata(start + u64::from(package));
        self.pointer_in_rodata(self.places.fields);
        self.rodata.extend([2_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat());
        self.uncommon(package);
        self.places.pointer = self.here();
        self.header(8, 1, 22, object);
        self.pointer_in_rodata(self.places.object);
        self.uncommon(package);
        self.places.interface = self.here();
        self.header(16, 3, 20, interface);
        self.pointer_in_rodata(start + u64::from(package));
        self.pointer_in_rodata(start);
        self.rodata.extend([2_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat());
        self.uncommon(package);
        let kitex = if self.file.kitex { self.kitex_types(start, string_type) } else { Vec::new() };
        let (itabs, size) = self.itabs(&kitex);
        let end = self.here();
        (start, end, itabs, size)
    }

    /// Writes the name of a type, a field or a package. Returns its offset in the type data.
    fn text(&mut self, flags: u8, text: &str) -> u32 {
        let offset = self.rodata.len();
        self.rodata.extend([flags, u8::try_from(text.len()).expect("a short name")]);
        self.rodata.extend(text.as_bytes());
        u32::try_from(offset).expect("a small file")
    }

    fn header(&mut self, size: u64, flags: u8, kind: u8, name: u32) {
        self.rodata.extend(size.to_le_bytes());
        self.rodata.extend([0; 12]);
        self.rodata.extend([flags, 8, 8, kind]);
        self.rodata.extend([0; 16]);
        self.rodata.extend(name.to_le_bytes());
        self.rodata.extend([0; 4]);
    }

    fn uncommon(&mut self, package: u32) {
        self.rodata.extend(package.to_le_bytes());
        self.rodata.extend([0; 12]);
    }

    /// Three itabs, the second of a type that does not implement the interface, and those of Kitex.
    fn itabs(&mut self, kitex: &[(u64, u64)]) -> (u64, u64) {
        let mut links = Vec::new();
        let start = self.here();
        let Places { interface, pointer, object, .. } = self.places;
        let own = [(interface, pointer, 2), (interface, object, 0), (interface, pointer, 2)];
        let kitex = kitex.iter().map(|&(interface, concrete)| (interface, concrete, 1));
        for (interface, concrete, methods) in own.into_iter().chain(kitex) {
            links.push(self.here());
            self.pointer_in_rodata(interface);
            self.pointer_in_rodata(concrete);
            self.rodata.extend([0; 8]);
            for _ in 0..methods {
                self.pointer_in_rodata(TEXT);
            }
            if methods == 0 {
                self.rodata.extend([0; 8]);
            }
        }
        let size = self.here() - start;
        if self.file.minor >= 27 {
            return (start, size);
        }
        let list = self.here();
        for link in &links {
            self.pointer_in_rodata(*link);
        }
        (list, links.len() as u64)
    }

    // The function table: header, names, rows with records.

    fn table(&mut self) {
        let old = self.file.minor <= 17;
        let magic: u32 = match self.file.minor {
            ..=17 => 0xffff_fffa,
            18..=19 => 0xffff_fff0,
            20.. => 0xffff_fff1,
        };
        let width = if old { 8 } else { 4 };
        let header = if old { 64 } else { 72 };
        let mut names = Vec::new();
        let mut name_offsets = Vec::new();
        let dissolved = self.file.dissolved;
        for name in self.functions.iter().map(|(name, _)| *name).chain(dissolved) {
            name_offsets.push(u32::try_from(names.len()).expect("a small file"));
            names.extend(name.as_bytes());
            names.push(0);
        }
        names.resize(names.len().next_multiple_of(8), 0);

        let table = self.here();
        let rows_at = header + names.len() as u64;
        self.places.table = table;
        self.places.names = table + header;
        self.places.rows = table + rows_at;
        self.rodata.extend(magic.to_le_bytes());
        self.rodata.extend([0, 0, 1, 8]);
        self.rodata.extend((self.functions.len() as u64).to_le_bytes());
        self.rodata.extend(0_u64.to_le_bytes());
        if !old {
            self.rodata.extend(0_u64.to_le_bytes());
        }
        for offset in [header, rows_at, rows_at, rows_at, rows_at] {
            self.rodata.extend(offset.to_le_bytes());
        }
        self.rodata.extend(names);
        let functions = self.functions.clone();
        let records = width * (2 * functions.len() as u64 + 1);
        let record = width + self.record(0, false, 0).len() as u64;
        let mut entry = 0;
        for i in 0..=functions.len() {
            self.number(old, TEXT, entry);
            if let Some((_, code)) = functions.get(i) {
                self.number(old, 0, records + record * i as u64);
                entry += code.len() as u64;
            }
        }
        let index = u32::try_from(records + record * functions.len() as u64).expect("a small file");
        let mut entry = 0;
        for (i, ((_, code), name)) in functions.iter().zip(&name_offsets).enumerate() {
            self.number(old, TEXT, entry);
            let rest = self.record(*name, i == 1, index);
            self.rodata.extend(rest);
            entry += code.len() as u64;
        }
        if self.file.has_tree() {
            let inlined = self.file.inlined.then(|| name_offsets[0]);
            let dissolved = dissolved.map(|_| name_offsets[functions.len()]);
            self.tree(&inlined.into_iter().chain(dissolved).collect::<Vec<_>>());
        }
    }

    /// A function's record without its address, with a tree of inlined calls if it has one.
    fn record(&self, name: u32, has_tree: bool, index: u32) -> Vec<u8> {
        let mut words = vec![name, 0];
        let fixed = match self.file.minor {
            ..=17 => return words.into_iter().flat_map(u32::to_le_bytes).collect(),
            18..=19 => 9,
            20.. => 10,
        };
        words.resize(fixed, 0);
        if self.file.has_tree() {
            words[6] = 3;
            words[fixed - 1] = 4 << 24;
            let (index, place) = if has_tree { (index, 0) } else { (0, u32::MAX) };
            words.extend([0, 0, index, u32::MAX, u32::MAX, u32::MAX, place]);
        }
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// Writes the table that maps instructions to calls, and a tree with a call of each function with one of these
    /// names.
    fn tree(&mut self, names: &[u32]) {
        self.rodata.extend([2_u8, 1].repeat(names.len()));
        self.rodata.push(0);
        self.function_data = self.here();
        let (before, behind) = if self.file.minor < 20 { (12, 4) } else { (4, 8) };
        for name in names {
            self.rodata.extend(vec![0; before]);
            self.rodata.extend(name.to_le_bytes());
            self.rodata.extend(vec![0; behind]);
        }
    }

    /// Writes an address, or the distance to the base.
    fn number(&mut self, address: bool, base: u64, value: u64) {
        if address && base != 0 {
            self.pointer_in_rodata(base + value);
        } else if address {
            self.rodata.extend(value.to_le_bytes());
        } else {
            self.rodata.extend(u32::try_from(value).expect("a small file").to_le_bytes());
        }
    }

    fn build_info(&mut self) {
        const MARK: &str = "0123456789abcdef";
        let kitex = if self.file.kitex { kitex::DEPENDENCY } else { "" };
        let modules = format!("{MARK}path\texample.com/pkg\nmod\texample.com/pkg\tv1.2.3\n{kitex}{MARK}");
        let version = self.file.version.clone();
        self.places.build_info = DATA;
        self.data.extend(b"\xff Go buildinf:\x08");
        if self.file.minor >= 18 {
            self.data.push(2);
            self.data.extend([0; 16]);
            for text in [version, modules] {
                self.data.push(u8::try_from(text.len()).expect("a short text"));
                self.data.extend(text.as_bytes());
            }
        } else {
            self.data.push(0);
            let strings = DATA + 32;
            self.pointer_in_data(strings);
            self.pointer_in_data(strings + 16);
            let text = strings + 32;
            for (at, len) in [(text, version.len()), (text + version.len() as u64, modules.len())] {
                self.pointer_in_data(at);
                self.data.extend((len as u64).to_le_bytes());
            }
            self.data.extend(version.as_bytes());
            self.data.extend(modules.as_bytes());
        }
        self.data.resize(self.data.len().next_multiple_of(16), 0);
    }

    fn module(&mut self, (types, types_end, itabs, itab_size): (u64, u64, u64, u64)) {
        let minor = self.file.minor;
        let Places { table, names, rows, .. } = self.places;
        let rows_end = RODATA + self.rodata.len() as u64;
        let text_end = TEXT + self.functions.iter().map(|(_, code)| code.len() as u64).sum::<u64>();
        // A pointer to the function table that is not in the module data.
        self.pointer_in_data(table);
        self.data.extend([0; 8]);
        self.places.module = DATA + self.data.len() as u64;
        self.pointer_in_data(table);
        self.slice_in_data(names, usize::try_from(rows - names).expect("a small file"));
        for _ in 0..3 {
            self.slice_in_data(rows, 0);
        }
        self.slice_in_data(rows, usize::try_from(rows_end - rows).expect("a small file"));
        self.slice_in_data(rows, self.functions.len() + 1);
        self.pointer_in_data(0);
        for pointer in [TEXT, text_end, TEXT, text_end] {
            self.pointer_in_data(pointer);
        }
        let unused = if minor >= 20 { 10 } else { 8 };
        self.data.extend(vec![0; 8 * (unused + 3)]);
        self.pointer_in_data(types);
        if minor >= 27 {
            self.data.extend((types_end - types).to_le_bytes());
        }
        self.pointer_in_data(types_end);
        if minor >= 27 {
            self.data.extend((itabs - types).to_le_bytes());
            self.data.extend(itab_size.to_le_bytes());
        }
        // rodata and gofunc since Go 1.18, epclntab since Go 1.26; then two slices.
        let words = if minor >= 26 {
            3
        } else if minor >= 18 {
            2
        } else {
            0
        };
        if words > 0 {
            self.data.extend([0; 8]);
            self.pointer_in_data(self.function_data);
        }
        self.data.extend(vec![0; 8 * (words.max(2) - 2 + 6)]);
        if minor < 27 {
            self.slice_in_data(itabs, usize::try_from(itab_size).expect("a small file"));
        }
        self.data.extend([0; 160]);
    }

    // The file around it.

    fn file(&mut self) -> Vec<u8> {
        let mut text: Vec<u8> = self.functions.iter().flat_map(|(_, code)| code.iter().copied()).collect();
        text.resize(text.len().next_multiple_of(16), 0xcc);
        let rela_at = DATA + self.data.len() as u64;
        let relocations = std::mem::take(&mut self.relocations);
        // Linkers do not always sort them.
        for (address, value) in relocations.iter().rev() {
            self.data.extend(address.to_le_bytes());
            self.data.extend(8_u64.to_le_bytes());
            self.data.extend(value.to_le_bytes());
        }
        let dynamic_at = DATA + self.data.len() as u64;
        for (tag, value) in [(7, rela_at), (8, 24 * relocations.len() as u64), (9, 24), (0, 0_u64)] {
            self.data.extend(u64::to_le_bytes(tag));
            self.data.extend(value.to_le_bytes());
        }
        let notes = [note(*b"GNU\0", 3, &[0xab, 0xcd]), note(*b"Go\0\0", 4, b"go-id")].concat();
        let notes_at = self.here();
        self.rodata.extend(&notes);

        let mut file = vec![0; usize::try_from(DATA - BASE).expect("a small file")];
        for (address, part) in [(TEXT, &text), (RODATA, &self.rodata)] {
            let at = usize::try_from(address - BASE).expect("a small file");
            file[at..at + part.len()].copy_from_slice(part);
        }
        file.extend(&self.data);
        let mut headers = vec![
            segment(1, 5, TEXT, text.len() as u64),
            segment(1, 4, RODATA, self.rodata.len() as u64),
            segment(1, 6, DATA, self.data.len() as u64),
            segment(4, 4, notes_at, notes.len() as u64),
        ];
        if self.file.pie {
            headers.push(segment(2, 6, dynamic_at, 64));
        }
        let section_count = if self.file.sections { self.sections(&mut file) } else { (0, 0) };
        let header = header(self.file.pie, headers.len(), section_count);
        let start = [header, headers.concat()].concat();
        file[..start.len()].copy_from_slice(&start);
        file
    }

    /// Appends section headers. Returns their offset and count.
    fn sections(&self, file: &mut Vec<u8>) -> (u64, usize) {
        let module = if self.file.minor >= 26 { ".go.module" } else { ".noptrdata" };
        let mapped = [
            (".gopclntab", self.places.table, RODATA + self.rodata.len() as u64 - self.places.table),
            (".go.buildinfo", self.places.build_info, 256),
            (module, self.places.module, 400),
        ];
        let mut names = vec![0];
        let mut table = vec![[0; 64].to_vec()];
        for (name, address, size) in mapped {
            table.push(section(names.len(), 1, 2, address, address - BASE, size));
            names.extend(name.as_bytes());
            names.push(0);
        }
        for (name, flags, contents) in &self.file.unmapped {
            table.push(section(names.len(), 1, *flags, 0, file.len() as u64, contents.len() as u64));
            file.extend(contents);
            names.extend(name.as_bytes());
            names.push(0);
        }
        table.push(section(0, 3, 0, 0, file.len() as u64, names.len() as u64));
        file.extend(names);
        file.resize(file.len().next_multiple_of(8), 0);
        let at = file.len() as u64;
        file.extend(table.concat());
        (at, table.len())
    }
}

fn header(pie: bool, segments: usize, (sections_at, sections): (u64, usize)) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    let small = |value: usize| u16::try_from(value).expect("a small file").to_le_bytes();
    header.extend(small(if pie { 3 } else { 2 }));
    header.extend(small(62));
    header.extend(1_u32.to_le_bytes());
    header.extend(TEXT.to_le_bytes());
    header.extend(64_u64.to_le_bytes());
    header.extend(sections_at.to_le_bytes());
    header.extend(0_u32.to_le_bytes());
    for value in [64, 56, segments, 64, sections, sections.saturating_sub(1)] {
        header.extend(small(value));
    }
    header
}

fn segment(kind: u32, flags: u32, address: u64, size: u64) -> Vec<u8> {
    let mut header = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    for value in [address - BASE, address, address, size, size, 0x1000] {
        header.extend(value.to_le_bytes());
    }
    header
}

fn section(name: usize, kind: u32, flags: u64, address: u64, offset: u64, size: u64) -> Vec<u8> {
    let name = u32::try_from(name).expect("a short table");
    let mut header = [name.to_le_bytes(), kind.to_le_bytes()].concat();
    for value in [flags, address, offset, size, 0, 1, 0] {
        header.extend(value.to_le_bytes());
    }
    header
}

fn note(owner: [u8; 4], kind: u32, content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).expect("a short note");
    let mut note = [4_u32.to_le_bytes(), len.to_le_bytes(), kind.to_le_bytes(), owner].concat();
    note.extend(content);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}
