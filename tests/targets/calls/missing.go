package main

// missing registers scenarios that this release of Kitex cannot make.
func missing(reason string, names ...string) {
	for _, name := range names {
		register(scenario{name: name, about: "not in this release", missing: reason})
	}
}
