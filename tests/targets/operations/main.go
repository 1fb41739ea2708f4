// Command operations does things that no framework knows of, and counts them itself: jobs of a queue, which begin in one
// function and end in another, work that one function does from its entry to its return, and requests to a server of
// net/http. Turns begin and end when they are told to, and are counted by who tells them.
package main

import (
	"fmt"
	"os"

	"example.com/monitor/steer"
)

func main() {
	server, err := newServer()
	if err == nil {
		c := &control{queue: newQueue(), work: &work{}, server: server, turns: &turns{byID: map[int]*turn{}}, trail: newTrail(), marks: &marks{}, coins: newCoins()}
		err = steer.Serve(steer.Ready(), c.obey)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
