// Synthetic makes RPCs that have no network, no codec and no handler: it enters Kitex's functions at the start and at the
// finish of a call itself, with the object that a Kitex server has, as fast as it is told. So one process makes more
// calls in a second than the agent will ever see of a real one, and next to nothing else happens meanwhile.
//
// It is steered by lines on stdin, each answered by one JSON line on stdout, and ends with stdin:
//
//	calls RATE SECONDS METHODS [TICK]   RATE calls a second, of so many methods in turn, those that are due once in TICK
//	                                    milliseconds: {"calls","seconds"}
//	quit                                answers, then ends
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cloudwego/kitex/pkg/rpcinfo"
)

// ballast makes an executable larger: see xtask/src/bench/ballast.rs, which adds to it.
var ballast []any

// usualTick is how often calls are made that are due, unless they are rarer, in milliseconds.
const usualTick = "1"

var errUsage = errors.New("wrong or missing arguments")

func main() {
	answer := json.NewEncoder(os.Stdout)
	_ = answer.Encode(map[string]any{"ready": true, "pid": os.Getpid(), "ballast": len(ballast)})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		reply, err := obey(strings.Fields(lines.Text()))
		if err != nil {
			reply = map[string]any{"error": err.Error()}
		}
		if answer.Encode(reply) != nil || reply["quit"] != nil {
			return
		}
	}
}

func obey(words []string) (map[string]any, error) {
	switch {
	case len(words) == 1 && words[0] == "quit":
		return map[string]any{"quit": true}, nil
	case len(words) == 4 && words[0] == "calls":
		return obey(append(words, usualTick))
	case len(words) == 5 && words[0] == "calls":
		rate, err := strconv.ParseFloat(words[1], 64)
		seconds, err2 := strconv.ParseFloat(words[2], 64)
		methods, err3 := strconv.Atoi(words[3])
		tick, err4 := strconv.Atoi(words[4])
		if errors.Join(err, err2, err3, err4) != nil || rate <= 0 || methods < 1 || tick < 1 {
			return nil, errUsage
		}
		tickTime := time.Duration(tick) * time.Millisecond
		return calls(rate, time.Duration(seconds*float64(time.Second)), methods, tickTime), nil
	}
	return nil, errUsage
}

// calls makes the calls that are due, once a tick, until the time is over.
func calls(rate float64, d time.Duration, methods int, tick time.Duration) map[string]any {
	infos := make([]rpcinfo.RPCInfo, methods)
	for i := range infos {
		infos[i] = called(fmt.Sprintf("Method%d", i))
	}
	var controller rpcinfo.TraceController
	made := 0
	pause := max(tick, time.Duration(float64(time.Second)/rate))
	begin := time.Now()
	for elapsed := time.Duration(0); elapsed < d; elapsed = time.Since(begin) {
		for due := int(rate * elapsed.Seconds()); made < due; made++ {
			info := infos[made%methods]
			controller.DoFinish(controller.DoStart(context.Background(), info), info, nil)
		}
		time.Sleep(pause)
	}
	return map[string]any{"calls": made, "seconds": time.Since(begin).Seconds()}
}

// called is what a server has of a call.
func called(method string) rpcinfo.RPCInfo {
	info := rpcinfo.NewRPCInfoWithInlineFields()
	from, to := rpcinfo.AsMutableEndpointInfo(info.From()), rpcinfo.AsMutableEndpointInfo(info.To())
	_ = from.SetServiceName("shop")
	_ = to.SetServiceName("stock")
	_ = to.SetMethod(method)
	return info
}
