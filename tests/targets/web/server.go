package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
)

// tally answers requests, and counts them by method, status and version of HTTP.
type tally struct {
	servers []*httptest.Server
	mu      sync.Mutex
	counts  map[string]int
}

func newTally() *tally {
	t := &tally{counts: map[string]int{}}
	young := httptest.NewUnstartedServer(t)
	young.EnableHTTP2 = true
	young.StartTLS()
	t.servers = []*httptest.Server{httptest.NewServer(t), young}
	return t
}

// ServeHTTP answers with the status that the path names, and without a header where it names none.
func (t *tally) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code := 200
	if _, err := fmt.Sscanf(strings.TrimPrefix(r.URL.Path, "/"), "%d", &code); err == nil {
		w.WriteHeader(code)
	}
	t.mu.Lock()
	t.counts[fmt.Sprintf("%s/%d/%d", r.Method, code, r.ProtoMajor)]++
	t.mu.Unlock()
}

// requests makes n requests of each kind.
func (t *tally) requests(n int) error {
	for _, server := range t.servers {
		for _, method := range []string{"GET", "POST", "BREW"} {
			for _, path := range []string{"", "201", "404", "503"} {
				for i := 0; i < n; i++ {
					if err := request(server, method, path); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

func request(server *httptest.Server, method, path string) error {
	request, err := http.NewRequest(method, server.URL+"/"+path, nil)
	if err != nil {
		return err
	}
	response, err := server.Client().Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
