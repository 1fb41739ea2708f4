package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// server answers requests of HTTP/1 and of HTTP/2, and counts them.
type server struct {
	address string
	clients map[string]*http.Client
	mu      sync.Mutex
	counts  map[string]int
}

func newServer() (*server, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{address: listener.Addr().String(), clients: map[string]*http.Client{}, counts: map[string]int{}}
	both, old, young := &http.Protocols{}, &http.Protocols{}, &http.Protocols{}
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	old.SetHTTP1(true)
	young.SetUnencryptedHTTP2(true)
	s.clients["1"] = &http.Client{Transport: &http.Transport{Protocols: old}}
	s.clients["2"] = &http.Client{Transport: &http.Transport{Protocols: young}}
	served := &http.Server{Handler: s, Protocols: both}
	go func() { _ = served.Serve(listener) }()
	return s, nil
}

// ServeHTTP answers with the status that the path names, and without a header where it names none.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code := 200
	if _, err := fmt.Sscanf(strings.TrimPrefix(r.URL.Path, "/"), "%d", &code); err == nil {
		w.WriteHeader(code)
	}
	s.mu.Lock()
	s.counts[fmt.Sprintf("%s/%d/%d", r.Method, code, r.ProtoMajor)]++
	s.mu.Unlock()
}

// run makes n requests of each kind.
func (s *server) run(n int) error {
	for version := range s.clients {
		for _, method := range []string{"GET", "POST", "BREW"} {
			for _, path := range []string{"", "201", "404", "503"} {
				for range n {
					if err := s.request(version, method, path); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

func (s *server) request(version, method, path string) error {
	request, err := http.NewRequest(method, "http://"+s.address+"/"+path, nil)
	if err != nil {
		return err
	}
	response, err := s.clients[version].Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
