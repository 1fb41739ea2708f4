// A Thrift server that serves stock.thrift, and its client. The server counts what it does itself.
//
//   server            {"ready":true,"addr"}, then on stdin: `counts`: {"returned","thrown","restocked"}; `quit`
//   client ADDR N     makes N calls of each kind over four connections at once, then ends

#include <atomic>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

#include <thrift/protocol/TBinaryProtocol.h>
#include <thrift/server/TThreadedServer.h>
#include <thrift/transport/TBufferTransports.h>
#include <thrift/transport/TServerSocket.h>
#include <thrift/transport/TSocket.h>

#include "Stock.h"

using apache::thrift::protocol::TBinaryProtocol;
using apache::thrift::protocol::TBinaryProtocolFactory;
using apache::thrift::server::TThreadedServer;
using apache::thrift::transport::TBufferedTransport;
using apache::thrift::transport::TBufferedTransportFactory;
using apache::thrift::transport::TServerSocket;
using apache::thrift::transport::TServerTransport;
using apache::thrift::transport::TSocket;

static std::atomic<long> returned, thrown, restocked;

class StockHandler : public stock::StockIf {
  public:
    int32_t lookup(const std::string& item, const int32_t most) override;
    void restock(const std::string&) override { restocked++; }
};

// Not in the class: of what is there gcc puts no part elsewhere, as it does here with what throws.
int32_t StockHandler::lookup(const std::string& item, const int32_t most) {
    if (item == "none") {
        thrown++;
        stock::Missing missing;
        missing.item = item;
        throw missing;
    }
    returned++;
    return most;
}

static void serve() {
    auto listener = std::make_shared<TServerSocket>("127.0.0.1", 0);
    auto processor = std::make_shared<stock::StockProcessor>(std::make_shared<StockHandler>());
    TThreadedServer server(processor, std::static_pointer_cast<TServerTransport>(listener),
                           std::make_shared<TBufferedTransportFactory>(), std::make_shared<TBinaryProtocolFactory>());
    struct Ready : apache::thrift::server::TServerEventHandler {
        std::shared_ptr<TServerSocket> listener;
        void preServe() override {
            std::cout << "{\"ready\":true,\"addr\":\"127.0.0.1:" << listener->getPort() << "\"}" << std::endl;
        }
    };
    auto ready = std::make_shared<Ready>();
    ready->listener = listener;
    server.setServerEventHandler(ready);
    std::thread(&TThreadedServer::serve, &server).detach();
    for (std::string line; std::getline(std::cin, line) && line != "quit";) {
        std::cout << "{\"returned\":" << returned << ",\"thrown\":" << thrown << ",\"restocked\":" << restocked << "}"
                  << std::endl;
    }
    // The server's thread is not waited for.
    std::cout << "{}" << std::endl;
    _exit(0);
}

static void call(const std::string& address, int times) {
    auto port = std::stoi(address.substr(address.find(':') + 1));
    auto transport = std::make_shared<TBufferedTransport>(std::make_shared<TSocket>("127.0.0.1", port));
    transport->open();
    stock::StockClient client(std::make_shared<TBinaryProtocol>(transport));
    for (int time = 0; time < times; time++) {
        client.lookup("apple", time % 3);
        client.lookup(std::string(80, 'p'), 7);
        try {
            client.lookup("none", 1);
        } catch (const stock::Missing&) {
        }
        client.restock("apple");
    }
    transport->close();
}

int main(int count, char** arguments) {
    if (count == 2) serve();
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 4; thread++) {
        threads.emplace_back(call, std::string(arguments[2]), std::stoi(arguments[3]) / 4);
    }
    for (auto& thread : threads) thread.join();
}
