package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"example.com/monitor/steer"
)

// control obeys commands, as package steer reads them.
//
//	call N SHAPE [NAME=FORM…] [fail]    N calls, one after the other; NAME is caller, callee or method
//	change N START FINISH               N calls whose RPCInfo has one shape at the start, another at the finish
//	inside N START FINISH MS            the same inside a client call that began so many milliseconds before
//	record N SHAPE MS                   N calls that claim to have started so many milliseconds ago, or later if negative
//	bytes N SHAPE SIZE                  N calls that claim to have sent and received so many bytes
//	messages N SHAPE                    N messages sent and N received on a stream of this shape, and as many that fail
//	tabs N                              N server calls that come with as many copies of itabs, each of a type that is nowhere
//	numbered N FIRST                    N server calls, each with a copy of its itab that has a number, from FIRST on
//	methods N C                         N calls of N methods, method-0 and so on, from C goroutines
//	retries N                           N client calls, the first retried once, the second twice, and so on
//	rewrite N                           N calls while the bytes of their method change between 16 a and 16 b
//	unmap N SHAPE WHEN                  N calls whose RPCInfo is unmapped right before the start or the finish
//	again N SHAPE MS                    N calls whose RPCInfo has started another so many milliseconds before that never
//	                                    finishes; they finish on another goroutine
//	die N HOW                           N goroutines start a client call and end in it: exit or panic
//	vanish N                            N server calls with an itab that is gone right after them; whoever reads it waits
//	open N SHAPE DEPTH [NAME=FORM…]     N goroutines start DEPTH calls, each inside the one before
//	close N                             the oldest N of these goroutines finish their calls
//	flow C                              C goroutines make calls until pause
//	pause                               ends the flow
//	spawn N                             runs another program, N times one after the other
//	fork N                              N calls in a forked child, which ends then
//	patch FUNCTION PLACE                replaces an instruction of the own code by another with the same meaning;
//	                                    FUNCTION is start or finish, PLACE entry or frame
//	bury                                puts memory that nobody ever gives where calls start: none may start any more
//	exec PATH ARG…                      answers, then becomes another program in the middle of its calls
//	exit                                answers, then ends in the middle of its calls
//
// shapes.go lists the shapes, forms.go the forms. Where nothing else is said the answer is {"calls": finished calls}.
type control struct {
	steering steer.Steering
	caller   *caller
	open     []*opened
	flow     *flow
}

func (c *control) obey(command string, args []string) (map[string]any, error) {
	switch command {
	case "exit":
		c.steering.EndBy(func() error { os.Exit(0); return nil })
		return map[string]any{"exit": true}, nil
	case "exec":
		if len(args) == 0 {
			return nil, steer.ErrUsage
		}
		c.steering.EndBy(func() error { return syscall.Exec(args[0], args, os.Environ()) })
		return map[string]any{"exec": args[0]}, nil
	case "patch":
		return patch(args)
	case "bury":
		return map[string]any{"buried": true}, bury()
	case "flow":
		return c.startFlow(args)
	case "pause":
		return c.pause()
	}
	return c.calls(command, args)
}

// calls obeys the commands whose first argument is a number.
func (c *control) calls(command string, args []string) (map[string]any, error) {
	if len(args) == 0 {
		return nil, steer.ErrUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, err
	}
	begun := c.caller.account.ended()
	switch rest := args[1:]; command {
	case "call":
		err = c.caller.same(n, rest)
	case "change":
		err = c.caller.change(n, rest)
	case "inside":
		err = c.caller.inside(n, rest)
	case "record":
		err = c.caller.record(n, rest)
	case "bytes":
		err = c.caller.bytes(n, rest)
	case "messages":
		err = c.caller.messages(n, rest)
	case "tabs":
		c.caller.tabs(n)
	case "numbered":
		err = c.caller.numbered(n, rest)
	case "methods":
		err = c.caller.methods(n, rest)
	case "retries":
		err = c.caller.retries(n)
	case "rewrite":
		c.caller.rewrite(n)
	case "unmap":
		err = c.caller.unmap(n, rest)
	case "again":
		err = c.caller.again(n, rest)
	case "die":
		err = c.caller.die(n, rest)
	case "vanish":
		err = c.caller.vanish(n)
	case "open":
		err = c.openCalls(n, rest)
	case "close":
		err = c.closeCalls(n)
	case "spawn":
		err = spawn(n)
	case "fork":
		return fork(n)
	default:
		err = fmt.Errorf("unknown command %q", command)
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"calls": c.caller.account.ended() - begun}, nil
}

func (c *control) startFlow(args []string) (map[string]any, error) {
	if len(args) != 1 || c.flow != nil {
		return nil, steer.ErrUsage
	}
	goroutines, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, err
	}
	c.flow = startFlow(c.caller, goroutines)
	return map[string]any{"flowing": true}, nil
}

func (c *control) pause() (map[string]any, error) {
	if c.flow == nil {
		return nil, errors.New("there is no flow")
	}
	calls := c.flow.end()
	c.flow = nil
	return map[string]any{"calls": calls}, nil
}

func (c *control) openCalls(n int, args []string) error {
	if len(args) < 2 {
		return steer.ErrUsage
	}
	shape, depth, err := shapeAndNumber(args[:2])
	if err != nil {
		return err
	}
	called := usual
	for _, arg := range args[2:] {
		name, form, _ := strings.Cut(arg, "=")
		if err := called.set(name, form); err != nil {
			return err
		}
	}
	for range n {
		c.open = append(c.open, c.caller.open(shape, depth, called))
	}
	return nil
}

func (c *control) closeCalls(n int) error {
	if n > len(c.open) {
		return fmt.Errorf("only %d are open", len(c.open))
	}
	for _, open := range c.open[:n] {
		open.close()
	}
	c.open = c.open[n:]
	return nil
}

// spawn makes the runtime fork, with this process's memory shared until the child becomes another program.
func spawn(n int) error {
	for range n {
		if err := exec.Command("/bin/true").Run(); err != nil {
			return err
		}
	}
	return nil
}
