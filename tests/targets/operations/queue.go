package main

import (
	"errors"
	"fmt"
	"sync"
)

// task is what a queue holds.
type task interface {
	run() error
}

// job is one of the tasks of a queue.
type job struct {
	queue *queueName
	kind  string
	fails bool
	tries int32
}

type queueName struct{ name string }

var errJob = errors.New("the job failed")

func (j *job) run() error {
	if j.fails {
		return errJob
	}
	return nil
}

// queue runs jobs, and counts them by queue, kind, tries and outcome.
type queue struct {
	mu     sync.Mutex
	counts map[string]int
}

func newQueue() *queue {
	return &queue{counts: map[string]int{}}
}

// begin is where a job starts.
//
//go:noinline
func (q *queue) begin(j *job) {
	q.mu.Lock()
	j.tries++
	q.mu.Unlock()
}

// end is where it ends, on another goroutine.
//
//go:noinline
func (q *queue) end(j *job, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	q.mu.Lock()
	q.counts[fmt.Sprintf("%s/%s/%d/%s", j.queue.name, j.kind, j.tries, outcome)]++
	q.mu.Unlock()
}

// run makes n jobs, all under way at once.
func (q *queue) run(n int) {
	names := []*queueName{{"mail"}, {"images"}}
	var ended sync.WaitGroup
	for i := range n {
		j := &job{queue: names[i%2], kind: fmt.Sprintf("kind %d", i%3), fails: i%5 == 0, tries: int32(i % 4)}
		q.begin(j)
		ended.Add(1)
		go func(t task) {
			defer ended.Done()
			q.end(j, t.run())
		}(j)
	}
	ended.Wait()
}

// again runs n jobs, one after the other, each after one more try.
func (q *queue) again(n int) {
	mail := &queueName{"mail"}
	for i := range n {
		j := &job{queue: mail, kind: "again", tries: int32(i)}
		q.begin(j)
		q.end(j, j.run())
	}
}
