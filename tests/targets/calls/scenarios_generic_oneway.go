//go:build !kitex_before_0_13

package main

func init() {
	register(scenario{name: "generic_oneway", about: "generic, JSON without an answer, at which the server panics since v0.15", client: 1, server: 1,
		setup: func(s *stage) func() error { return generics(s, inJSON, "Notify", `{"action":0,"text":"payload"}`) }})
}
