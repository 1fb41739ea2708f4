// A program whose functions a spec of native functions describes, and which does with them whatever makes watching hard.
// It obeys lines on stdin and answers each by one line of JSON, as the Go targets do.
//
//   lookups N   looks N items up, of each kind of name and outcome: {"ran"}
//   recurse N   N times a function that calls itself 20 times: {"ran"}
//   jumps N     N times out of a function by longjmp, and once more by returning: {"ran"}
//   throws N    N times out of a function by an exception, and once more by returning: {"ran"}
//   leaves N    N threads that end inside the function, and one that returns: {"ran"}
//   pairs N     N operations of two functions by a pointer, as many by a number, all under way at once: {"ran"}
//   begin N     begins the operation N of two functions: {"ran"}
//   end N       ends it: {"ran"}
//   nap N       N times a function that takes 20 ms: {"ran"}
//   finds N     N times a method that returns in memory, with two names in turn: {"ran"}
//   calls N     N times a function that does nothing: {"ns"} for one
//   spin        calls a function all the time that begins with a nop of five bytes, with 1: {"ran"}
//   calm        no more: {"byte"}, the first one of that function now
//   padded N    calls it N times with 41: {"ran"}
//   confine N   N threads that may do nothing any more but read and write (seccomp), and wait: {"ran"}
//   counts      {"lookups":{item/result: n}}
//   quit        answers, then ends; the end of stdin does the same

#include <atomic>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iostream>
#include <linux/seccomp.h>
#include <map>
#include <pthread.h>
#include <sstream>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <vector>

#define WHOLE __attribute__((noinline, noclone, used))
#define KEPT extern "C" WHOLE

// Says how many there are of an item, or less than 0.
KEPT int stock_lookup(int shelf, const char* item, int most);
KEPT int stock_recurse(int depth);
KEPT int stock_jump(int depth);
KEPT int stock_throw(int depth);
KEPT int stock_leave(int depth);
KEPT int stock_nap(int milliseconds);
KEPT int stock_nothing(int value);
KEPT bool stock_is_even(int value);
KEPT void stock_begin(void* job, int32_t number);
KEPT void stock_end(int32_t number, void* job, const char* kind);
KEPT void stock_turn_begin(void* place, int64_t id);
KEPT void stock_turn_end(void* place, int64_t id);
KEPT int stock_many_1(int value) { asm volatile("" : : "r"(value)); return value + 1; }
KEPT int stock_many_2(int value) { asm volatile("" : : "r"(value)); return value + 2; }
KEPT int stock_many_3(int value) { asm volatile("" : : "r"(value)); return value + 3; }

// Gives one more. Begins with a nop of five bytes, and has no instruction that older kernels emulate under a probe.
extern "C" int padded(int value);
asm(R"(
    .pushsection .text
    .p2align 4
    .globl padded
    .type padded, @function
padded:
    .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
    lea 1(%rdi), %eax
    ret
    .size padded, . - padded
    .popsection
)");

// What is found is too large for registers, and so is returned where a first argument points, before `this`.
struct StockFound {
    long shelf, most, length;
};

struct StockShelf {
    long number;
    WHOLE StockFound find(double least, const std::string& item, int most) const;
};

static volatile int zero = 0;
static jmp_buf way_out;
static std::map<std::string, long> counted;

int stock_lookup(int shelf, const char* item, int most) {
    asm volatile("" : : "r"(item) : "memory");
    return most < 0 ? -1 : shelf + most;
}

int stock_recurse(int depth) { return depth == 0 ? zero : stock_recurse(depth - 1) + 1; }

int stock_jump(int depth) {
    if (depth > 0) return stock_jump(depth - 1) + 1;
    if (depth < 0) longjmp(way_out, 1);
    return 0;
}

int stock_throw(int depth) {
    if (depth < 0) throw std::runtime_error("thrown");
    return depth == 0 ? zero : stock_throw(depth - 1) + 1;
}

int stock_leave(int depth) {
    if (depth < 0) pthread_exit(nullptr);
    return depth == 0 ? zero : stock_leave(depth - 1) + 1;
}

int stock_nap(int milliseconds) {
    timespec time = {0, milliseconds * 1000000L};
    nanosleep(&time, nullptr);
    return milliseconds;
}

int stock_nothing(int value) {
    // Begins by putting a register aside, as most functions do that do anything.
    asm volatile("" : : "r"(value) : "memory", "rbx");
    return value;
}

bool stock_is_even(int value) {
    asm volatile("" : : "r"(value) : "memory");
    return (value & 1) == 0;
}

StockFound StockShelf::find(double least, const std::string& item, int most) const {
    asm volatile("" : : "x"(least), "r"(&item), "r"(most) : "memory");
    return {number, most, static_cast<long>(item.size())};
}

void stock_begin(void* job, int32_t number) { asm volatile("" : : "r"(job), "r"(number) : "memory"); }

void stock_end(int32_t number, void* job, const char* kind) {
    asm volatile("" : : "r"(job), "r"(number), "r"(kind) : "memory");
}

void stock_turn_begin(void* place, int64_t id) { asm volatile("" : : "r"(place), "r"(id) : "memory"); }

void stock_turn_end(void* place, int64_t id) { asm volatile("" : : "r"(place), "r"(id) : "memory"); }

// A place of its own for each operation.
static void* place_of(int id) {
    static std::map<int, int> places;
    return &places[id];
}

// A string that ends with the last byte of a page behind which there is nothing.
static const char* at_the_end_of_a_page(size_t length) {
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    char* pages = static_cast<char*>(
        mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    munmap(pages + page, page);
    char* text = pages + page - length - 1;
    memset(text, 'e', length);
    text[length] = 0;
    return text;
}

// What a thread does that may only read and write: it waits for what never comes.
static void* confined(void* ready) {
    static int ends[2];
    if (pipe(ends) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) abort();
    char byte = 0;
    if (write(*static_cast<int*>(ready), &byte, 1) == 1 && read(ends[0], &byte, 1) == 1) abort();
    return nullptr;
}

static void confine(int times) {
    static int ready[2];
    if (pipe(ready) != 0) abort();
    for (int time = 0; time < times; time++) {
        pthread_t thread;
        char byte;
        if (pthread_create(&thread, nullptr, confined, &ready[1]) != 0 || read(ready[0], &byte, 1) != 1) abort();
    }
}

struct Lookup {
    const char* item;
    std::string shown;
    int most;
};

static void lookups(int times) {
    static const std::string x63(63, 'x'), x64(64, 'x'), x65(65, 'x'), x500(500, 'x');
    static const std::vector<Lookup> all = {
        {"apple", "apple", 3},
        {"pear", "pear", -1},
        {"", "unknown", 3},
        {nullptr, "unknown", 3},
        {reinterpret_cast<const char*>(8), "unreadable", 3},
        {reinterpret_cast<const char*>(0x5000), "unreadable", 3},
        {x63.c_str(), x63, 3},
        {x64.c_str(), x64, 3},
        {x65.c_str(), x64 + "…", 3},
        {x500.c_str(), x64 + "…", 3},
        {at_the_end_of_a_page(5), std::string(5, 'e'), 3},
        {at_the_end_of_a_page(63), std::string(63, 'e'), 3},
        {at_the_end_of_a_page(64), std::string(64, 'e'), 3},
        {at_the_end_of_a_page(65), std::string(64, 'e') + "…", 3},
    };
    for (int time = 0; time < times; time++) {
        for (const Lookup& one : all) {
            int result = stock_lookup(1, one.item, one.most);
            counted[one.shown + "/" + std::to_string(result)]++;
        }
    }
}

static void* leaving(void* depth) {
    return reinterpret_cast<void*>(static_cast<intptr_t>(stock_leave(static_cast<int>(reinterpret_cast<intptr_t>(depth)))));
}

static void leaves(int times) {
    for (int time = 0; time <= times; time++) {
        pthread_t thread;
        pthread_create(&thread, nullptr, leaving, reinterpret_cast<void*>(time < times ? -1L : 0L));
        pthread_join(thread, nullptr);
    }
}

static void throws(int times) {
    for (int time = 0; time < times; time++) {
        try {
            stock_throw(-1);
        } catch (const std::runtime_error&) {
        }
    }
    stock_throw(0);
}

static void jumps(int times) {
    for (volatile int time = 0; time < times; time = time + 1) {
        if (setjmp(way_out) == 0) stock_jump(-1);
    }
    stock_jump(0);
}

static void pairs(int times) {
    std::vector<long> jobs(static_cast<size_t>(times));
    for (int job = 0; job < times; job++) stock_begin(&jobs[static_cast<size_t>(job)], -job);
    for (int job = 0; job < times; job++) {
        stock_end(-job, &jobs[static_cast<size_t>(job)], job % 2 == 0 ? "even" : "odd");
    }
}

static std::atomic<bool> is_calm;
static pthread_t spinner;

static void* spin(void*) {
    while (!is_calm) padded(1);
    return nullptr;
}

static int calm() {
    is_calm = true;
    pthread_join(spinner, nullptr);
    return *reinterpret_cast<const volatile unsigned char*>(&padded);
}

static double nanoseconds(int times) {
    timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int time = 0; time < times; time++) stock_nothing(time);
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (static_cast<double>(end.tv_sec - begin.tv_sec) * 1e9 + static_cast<double>(end.tv_nsec - begin.tv_nsec)) / times;
}

static void counts() {
    std::cout << "{\"lookups\":{";
    const char* comma = "";
    for (const auto& [key, count] : counted) {
        std::cout << comma << '"' << key << "\":" << count;
        comma = ",";
    }
    std::cout << "}}" << std::endl;
}

int main() {
    std::cout << "{\"ready\":true,\"pid\":" << getpid() << "}" << std::endl;
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string command;
        int times = 0;
        words >> command >> times;
        if (command == "counts") {
            counts();
            continue;
        }
        if (command == "calm") {
            std::cout << "{\"byte\":" << calm() << "}" << std::endl;
            continue;
        }
        if (command == "calls") {
            std::cout << "{\"ns\":" << nanoseconds(times) << "}" << std::endl;
            continue;
        }
        if (command == "lookups") lookups(times);
        else if (command == "jumps") jumps(times);
        else if (command == "throws") throws(times);
        else if (command == "leaves") leaves(times);
        else if (command == "pairs") pairs(times);
        else if (command == "confine") confine(times);
        else if (command == "spin") pthread_create(&spinner, nullptr, spin, nullptr);
        else if (command == "begin") stock_turn_begin(place_of(times), times);
        else if (command == "end") stock_turn_end(place_of(times), times);
        else if (command == "recurse" || command == "nap" || command == "even" || command == "finds" || command == "many" || command == "padded") {
            for (int time = 0; time < times; time++) {
                if (command == "recurse") stock_recurse(20);
                else if (command == "nap") stock_nap(20);
                else if (command == "even") stock_is_even(time);
                else if (command == "padded") padded(41);
                else if (command == "finds") StockShelf{1}.find(0.5, time % 2 == 0 ? "short" : std::string(40, 'l'), 7);
                else stock_many_1(stock_many_2(stock_many_3(time)));
            }
        } else if (command != "quit") {
            std::cout << "{\"error\":\"no command " << command << "\"}" << std::endl;
            continue;
        }
        std::cout << "{\"ran\":" << times << "}" << std::endl;
        if (command == "quit") break;
    }
}
