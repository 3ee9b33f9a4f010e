// Python module diinn_fast._cpu: the kernels on raw addresses. diinn_fast/backends/cpu.py checks
// everything first.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "decoder.h"

namespace py = pybind11;
using namespace diinn;

namespace {

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The kernels of an instruction set, of a list that ends with null.
template <class T>
const T& of_set(const T* const* list, const std::string& name) {
  for (; *list; ++list) {
    if (name == (*list)->name) return **list;
  }
  throw std::invalid_argument("no such kernels for instruction set " + name);
}

template <class T>
std::vector<std::string> sets(const T* const* list) {
  std::vector<std::string> names;
  for (; *list; ++list) names.emplace_back((*list)->name);
  return names;
}

const Kernels& kernels(const std::string& name) { return of_set(available_kernels(), name); }

const KernelsBf16& bf16_kernels(const std::string& name) {
  return of_set(available_bf16_kernels(), name);
}

const KernelsInt8& int8_kernels(const std::string& name) {
  return of_set(available_int8_kernels(), name);
}

std::vector<std::pair<std::string, std::string>> int8_instruction_sets() {
  std::vector<std::pair<std::string, std::string>> names;
  for (const KernelsInt8* const* k = available_int8_kernels(); *k; ++k)
    names.emplace_back((*k)->name, (*k)->base);
  return names;
}

Problem problem(const std::string& form, bool recurrent_k, std::array<std::int64_t, 7> shape,
                std::int64_t content_rows, std::uintptr_t source,
                const std::vector<std::uintptr_t>& weights, float ratio,
                std::array<std::int64_t, 3> queries, std::array<std::uintptr_t, 4> positions,
                int threads, bool bfloat16, std::array<std::uintptr_t, 2> coarse) {
  Problem p{};
  p.form = form == "direct"       ? Form::direct
           : form == "modulation" ? Form::modulation
                                  : Form::content;
  p.recurrent_k = recurrent_k;
  p.batch = shape[0];
  p.rows = shape[1];
  p.columns = shape[2];
  p.width = shape[3];
  p.layers = shape[4];
  p.outputs = shape[5];
  p.channels = shape[6];
  p.content_rows = content_rows;
  p.threads = threads < 1 ? 1 : threads;
  p.source = at<const void>(source);
  p.bfloat16 = bfloat16;
  for (std::size_t n = 0; n < weights.size() && n < kWeights; ++n)
    p.weights[n] = at<const float>(weights[n]);
  p.ratio = ratio;
  p.points = queries[0];
  p.window_rows = queries[1];
  p.window_columns = queries[2];
  p.limits = at<const float>(coarse[0]);
  p.coarse = at<std::uint8_t>(coarse[1]);
  if (p.points) {
    p.point_index = at<const std::int64_t>(positions[0]);
    p.point_offset = at<const float>(positions[1]);
  } else {
    p.row_index = at<const std::int64_t>(positions[0]);
    p.row_offset = at<const float>(positions[1]);
    p.column_index = at<const std::int64_t>(positions[2]);
    p.column_offset = at<const float>(positions[3]);
  }
  return p;
}

void check_source(const Problem& p, bool bfloat16) {
  if (p.bfloat16 != bfloat16) throw std::invalid_argument("the source is of the other dtype");
  if (bfloat16 && p.form == Form::direct) throw std::invalid_argument("no bfloat16 kernels");
}

// Of padded, weight, bias and out; batch, rows, columns, channels and outputs.
Convolution convolution(std::array<std::uintptr_t, 4> addresses, std::array<std::int64_t, 5> shape,
                        int threads) {
  return {at<const float>(addresses[0]),
          at<const float>(addresses[1]),
          at<const float>(addresses[2]),
          at<float>(addresses[3]),
          shape[0],
          shape[1],
          shape[2],
          shape[3],
          shape[4],
          threads < 1 ? 1 : threads};
}

// Of [source, *weights].
std::array<float*, kWeights> weight_gradients(const std::vector<std::uintptr_t>& gradients) {
  std::array<float*, kWeights> pointers{};
  for (std::size_t n = 1; n < gradients.size() && n <= kWeights; ++n)
    pointers[n - 1] = at<float>(gradients[n]);
  return pointers;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Fused DIINN decoder for CPUs, on raw addresses: use diinn_fast.backends.cpu.";
  m.def(
      "instruction_sets", [] { return sets(available_kernels()); },
      "Compiled sets that this CPU has, best first.");
  py::class_<Problem>(m, "Problem")
      .def(py::init(&problem), py::kw_only(), py::arg("form"), py::arg("recurrent_k"),
           py::arg("shape"), py::arg("content_rows"), py::arg("source"), py::arg("weights"),
           py::arg("ratio"), py::arg("queries"), py::arg("positions"), py::arg("threads"),
           py::arg("bfloat16") = false, py::arg("coarse") = std::array<std::uintptr_t, 2>{});
  m.def("forward", [](const std::string& name, const Problem& p, std::uintptr_t out) {
    const Kernels& k = kernels(name);
    check_source(p, false);
    py::gil_scoped_release release;
    k.forward(p, at<float>(out));
  });
  m.def("backward", [](const std::string& name, const Problem& p, std::uintptr_t grad,
                       const std::vector<std::uintptr_t>& gradients) {
    const Kernels& k = kernels(name);
    check_source(p, false);
    const auto pointers = weight_gradients(gradients);
    py::gil_scoped_release release;
    k.backward(p, at<const float>(grad), at<float>(gradients.at(0)), pointers.data());
  });
  m.def(
      "bf16_instruction_sets", [] { return sets(available_bf16_kernels()); },
      "Sets with kernels in bfloat16 that this CPU has, best first.");
  m.def("forward_bf16", [](const std::string& name, const Problem& p, std::uintptr_t out) {
    const KernelsBf16& k = bf16_kernels(name);
    check_source(p, true);
    py::gil_scoped_release release;
    k.forward(p, at<std::uint16_t>(out));
  });
  m.def("backward_bf16", [](const std::string& name, const Problem& p, std::uintptr_t grad,
                            const std::vector<std::uintptr_t>& gradients) {
    const KernelsBf16& k = bf16_kernels(name);
    check_source(p, true);
    const auto pointers = weight_gradients(gradients);
    py::gil_scoped_release release;
    k.backward(p, at<const std::uint16_t>(grad), at<std::uint16_t>(gradients.at(0)),
               pointers.data());
  });
  m.def("convolve", [](const std::string& name, std::array<std::uintptr_t, 5> addresses,
                       std::array<std::int64_t, 4> shape, bool rectify, int threads) {
    const KernelsBf16& k = bf16_kernels(name);
    if (!k.convolve || shape[2] < 32 || shape[2] % 32 || shape[3] % 32)
      throw std::invalid_argument("no convolution of this set or shape");
    const LayerConvolution c = {at<const float>(addresses[0]),
                                at<const float>(addresses[1]),
                                at<const float>(addresses[2]),
                                at<const float>(addresses[3]),
                                at<float>(addresses[4]),
                                shape[0],
                                shape[1],
                                shape[2],
                                shape[3],
                                rectify,
                                threads < 1 ? 1 : threads};
    py::gil_scoped_release release;
    k.convolve(c);
  });
  m.def("int8_instruction_sets", &int8_instruction_sets,
        "Sets with int8 kernels that this CPU has, best first, each with the set of the float32 "
        "kernels that goes with it.");
  m.def("forward_int8", [](const std::string& name, const Problem& p, std::uintptr_t out) {
    const KernelsInt8& k = int8_kernels(name);
    check_source(p, false);
    if (p.form == Form::direct || p.init_q() || p.width > kMostInt8Terms)
      throw std::invalid_argument("no int8 kernels for this form or width");
    py::gil_scoped_release release;
    k.forward(p, at<float>(out));
  });
  m.def("int8_sine",
        [](const std::string& name, std::uintptr_t x, std::uintptr_t sine, std::int64_t count) {
          const KernelsInt8& k = int8_kernels(name);
          py::gil_scoped_release release;
          k.sine(at<const float>(x), at<float>(sine), count);
        });
  m.def("conv3x3", [](const std::string& name, std::uintptr_t padded, std::uintptr_t weight,
                      std::uintptr_t bias, std::uintptr_t out, std::array<std::int64_t, 5> shape,
                      int threads) {
    const Kernels& k = kernels(name);
    const Convolution c = convolution({padded, weight, bias, out}, shape, threads);
    py::gil_scoped_release release;
    k.conv3x3(c);
  });
  m.def("int8_conv3x3", [](const std::string& name, std::uintptr_t padded, std::uintptr_t weight,
                           std::uintptr_t bias, std::uintptr_t out,
                           std::array<std::int64_t, 5> shape, int threads) {
    const KernelsInt8& k = int8_kernels(name);
    const Convolution c = convolution({padded, weight, bias, out}, shape, threads);
    if (c.taps() > kMostDigitTerms) throw std::invalid_argument("too many channels for int8");
    py::gil_scoped_release release;
    k.conv3x3(c);
  });
  m.def("sine", [](const std::string& name, std::uintptr_t x, std::uintptr_t sine,
                   std::uintptr_t cosine, std::int64_t count) {
    const Kernels& k = kernels(name);
    py::gil_scoped_release release;
    k.sine(at<const float>(x), at<float>(sine), at<float>(cosine), count);
  });
}
