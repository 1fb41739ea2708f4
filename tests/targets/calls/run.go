package main

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// seen is how many calls tracers saw finish.
type seen struct{ client, server int64 }

func (s *stage) seen() seen { return seen{s.client.finished.Load(), s.server.finished.Load()} }

func (s *stage) underWay() int64 { return s.client.underWay() + s.server.underWay() }

func (s seen) otherThan(meant seen) error {
	return fmt.Errorf("%d calls of the client and %d of the server finished, of %d and %d",
		s.client, s.server, meant.client, meant.server)
}

// run makes n repetitions and returns what tracers saw of them.
func (s *stage) run(n int) (seen, error) {
	if s.scenario.missing != "" {
		return seen{}, errors.New(s.scenario.missing)
	}
	if err := s.prepare(); err != nil {
		return seen{}, s.failed(err)
	}
	before := s.seen()
	if err := s.repeat(n); err != nil {
		return seen{}, s.failed(err)
	}
	if s.scenario.abandons {
		return s.since(before), nil
	}
	meant := seen{int64(n * s.scenario.client), int64(n * s.scenario.server)}
	return s.await(before, meant)
}

func (s *stage) failed(err error) error { return fmt.Errorf("%s: %w", s.scenario.name, err) }

func (s *stage) repeat(n int) error {
	if !s.scenario.parallel {
		for i := 0; i < n; i++ {
			if err := s.repetition(); err != nil {
				return err
			}
		}
		return nil
	}
	var all sync.WaitGroup
	errs := make([]error, n)
	for i := 0; i < n; i++ {
		i := i
		all.Add(1)
		go func() {
			defer all.Done()
			errs[i] = s.repetition()
		}()
	}
	all.Wait()
	return join(errs...)
}

func (s *stage) since(before seen) seen {
	now := s.seen()
	return seen{now.client - before.client, now.server - before.server}
}

// await waits until as many calls have finished as are meant to, and sees that no more of them come.
func (s *stage) await(before, meant seen) (seen, error) {
	begin := time.Now()
	still, last := begin, s.since(before)
	for time.Since(still) < quiet {
		if time.Since(begin) > patience {
			return last, s.failed(fmt.Errorf("%w; %d are under way", last.otherThan(meant), s.underWay()))
		}
		time.Sleep(time.Millisecond)
		now := s.since(before)
		if now != last || s.underWay() != 0 || now.client < meant.client || now.server < meant.server {
			still, last = time.Now(), now
		}
	}
	if last.client != meant.client || meant.server >= 0 && last.server != meant.server {
		return last, s.failed(last.otherThan(meant))
	}
	return last, nil
}
