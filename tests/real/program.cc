// A program of the kind that C++ is written as: templates, virtual functions, exceptions, streams, regular
// expressions, static objects. What it says is returned as text.

#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace {

struct Registry {
    std::map<std::string, std::function<double(double)>> functions;
    static Registry &get() { static Registry registry; return registry; }
};

struct Registration {
    Registration(const char *name, double (*function)(double)) { Registry::get().functions[name] = function; }
};

Registration half("half", [](double x) { return x / 2; });
Registration square("square", [](double x) { return x * x; });

struct Error : std::runtime_error {
    int depth;
    Error(const std::string &what, int depth) : std::runtime_error(what), depth(depth) {}
};

struct Shape {
    virtual ~Shape() = default;
    virtual double area() const = 0;
    virtual std::string name() const { return "shape"; }
};
struct Square final : Shape {
    double side;
    explicit Square(double side) : side(side) {}
    double area() const override { return side * side; }
    std::string name() const override { return "square"; }
};
struct Circle final : Shape {
    double radius;
    explicit Circle(double radius) : radius(radius) {}
    double area() const override { return 3.25 * radius * radius; }
};

struct Counted {
    static int alive;
    Counted() { alive++; }
    Counted(const Counted &) { alive++; }
    ~Counted() { alive--; }
};
int Counted::alive;

int descend(int depth, int limit) {
    Counted counted;
    std::string here = std::string(depth, '.');
    if (depth == limit)
        throw Error("at " + std::to_string(depth) + here, depth);
    try {
        return descend(depth + 1, limit) + 1;
    } catch (const std::out_of_range &) {
        return -1;
    } catch (Error &error) {
        if (depth % 3 == 0)
            throw Error(std::string(error.what()) + "<" + std::to_string(depth), depth);
        throw;
    }
}

template <class... Types> std::string describe(const std::variant<Types...> &value) {
    return std::visit([](const auto &held) { std::ostringstream out; out << held; return out.str(); }, value);
}

} // namespace

extern "C" __attribute__((visibility("default"))) const char *program(void) {
    static std::string said;
    std::ostringstream out;
    for (auto &[name, function] : Registry::get().functions)
        out << name << '=' << function(5) << ' ';
    std::vector<std::unique_ptr<Shape>> shapes;
    for (int i = 1; i < 6; i++) {
        if (i % 2)
            shapes.push_back(std::make_unique<Square>(i));
        else
            shapes.push_back(std::make_unique<Circle>(i));
    }
    std::sort(shapes.begin(), shapes.end(), [](auto &a, auto &b) { return a->area() > b->area(); });
    for (auto &shape : shapes)
        out << shape->name() << ':' << shape->area() << ' ' << (dynamic_cast<Circle *>(shape.get()) ? 'c' : 's') << ' ';
    for (int limit : {0, 4, 7}) {
        try {
            descend(1, limit + 1);
        } catch (const std::exception &error) {
            out << error.what() << " alive " << Counted::alive << ' ';
        }
    }
    try {
        (void)std::stoi("no number");
    } catch (const std::invalid_argument &error) {
        out << "stoi " << error.what() << ' ';
    }
    try {
        (void)std::vector<int>(3).at(3);
    } catch (const std::out_of_range &) {
        out << "at ";
    }
    try {
        throw 42L;
    } catch (int) {
        out << "int ";
    } catch (long value) {
        out << "long " << value << ' ';
    }
    std::regex pattern("([a-z]+)-(\\d+)");
    std::string text = "alpha-1 beta-22 gamma delta-333";
    for (std::sregex_iterator match(text.begin(), text.end(), pattern), end; match != end; ++match)
        out << (*match)[2] << (*match)[1] << ' ';
    using Value = std::variant<int, double, std::string>;
    for (const Value &value : {Value(1), Value(2.5), Value("three")})
        out << describe(value) << ' ';
    std::vector<int> numbers(100);
    std::iota(numbers.begin(), numbers.end(), 1);
    out << std::accumulate(numbers.begin(), numbers.end(), 0, [](int a, int b) { return (a * 31 + b) % 10007; });
    said = out.str();
    return said.c_str();
}
