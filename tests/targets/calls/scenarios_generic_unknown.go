//go:build !kitex_before_0_15

package main

func init() {
	register(scenario{name: "generic_unknown", about: "generic, a method that the IDL doesn't have", client: 1,
		setup: func(s *stage) func() error {
			calls := generics(s, inJSON, missingMethod, `{}`)
			return func() error { return failing(missingMethod)(calls()) }
		}})
}
