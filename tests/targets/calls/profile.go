package main

import (
	"os"
	"runtime/pprof"
)

// profiled does the work and writes a CPU profile of it to the file that CALLS_PROFILE names, if it names one.
func profiled(work func() error) error {
	path := os.Getenv("CALLS_PROFILE")
	if path == "" {
		return work()
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return err
	}
	failed := work()
	pprof.StopCPUProfile()
	return join(failed, file.Close())
}
