// Command known has one struct type whose layout follows from Go's rules, in any release.
package main

type known struct {
	flag   bool
	name   string
	counts [3]int64
	tail   int32
}

// sink keeps the type in the program.
var sink interface{}

func main() {
	k := known{name: "known"}
	sink = &k
	println(k.name)
}
