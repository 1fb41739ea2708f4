// Package steer is how tests have their programs do things: by lines on stdin, each answered by one line of JSON on stdout.
// It is written for any Go from 1.18 on, which the oldest of the programs are built by.
package steer

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"strings"
)

// Values are what a line of JSON has.
type Values = map[string]interface{}

// ErrUsage says that a command is there, but its arguments are not.
var ErrUsage = errors.New("wrong or missing arguments")

// Ready is the first line: all that the tests wait for.
func Ready() Values { return Values{"ready": true, "pid": os.Getpid()} }

// Steering reads commands and has them obeyed.
type Steering struct{ last func() error }

// Serve is what [Steering.Serve] is, where no command but "quit" is the last.
func Serve(ready Values, obey func(command string, args []string) (Values, error)) error {
	return new(Steering).Serve(ready, obey)
}

// Serve writes the first line, then obeys each command until "quit", which it answers itself, or the end of stdin. What can't
// be done is answered by {"error": text}.
func (s *Steering) Serve(ready Values, obey func(command string, args []string) (Values, error)) error {
	answer := json.NewEncoder(os.Stdout)
	if err := answer.Encode(ready); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		if words[0] == "quit" {
			return answer.Encode(Values{"quit": true})
		}
		reply, err := obey(words[0], words[1:])
		if err != nil {
			reply = Values{"error": err.Error()}
		}
		if err := answer.Encode(reply); err != nil {
			return err
		}
		if s.last != nil {
			return s.last()
		}
	}
	return lines.Err()
}

// EndBy has the command that is obeyed now be the last: once it is answered, this is done.
func (s *Steering) EndBy(last func() error) { s.last = last }
