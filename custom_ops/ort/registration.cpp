// The one function that the library exports.
#include <memory>
#include <mutex>
#include <string>

#include "ort/custom_op.h"

namespace perfonnx::ort {
namespace {

// One domain serves every session: operators have no state. It goes with the process, since the library stays loaded.
OrtCustomOpDomain* domain(const OrtApi& api) {
  static std::mutex mutex;
  static std::unique_ptr<OrtCustomOpDomain, void(ORT_API_CALL*)(OrtCustomOpDomain*)> made(nullptr,
                                                                                          api.ReleaseCustomOpDomain);
  const std::lock_guard<std::mutex> lock(mutex);
  if (made == nullptr) {
    OrtCustomOpDomain* created = nullptr;
    check(api, api.CreateCustomOpDomain(kDomain, &created));
    std::unique_ptr<OrtCustomOpDomain, void(ORT_API_CALL*)(OrtCustomOpDomain*)> fresh(created,
                                                                                      api.ReleaseCustomOpDomain);
    for (const AddOperator add : operators()) add(api, created);
    made = std::move(fresh);
  }
  return made.get();
}

}  // namespace

std::vector<AddOperator>& operators() {
  static std::vector<AddOperator> list;  // made by the first file that asks for it: their order is nobody's choice
  return list;
}

}  // namespace perfonnx::ort

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                            const OrtApiBase* base) {
  using perfonnx::ort::kApiVersion;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    const OrtApi* first = base->GetApi(1);
    const std::string message = "perfonnx: this library needs onnxruntime 1." + std::to_string(kApiVersion) +
                                " or later, and this is onnxruntime " + base->GetVersionString() + "; upgrade it";
    return first == nullptr ? nullptr : first->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
  }
  return perfonnx::ort::guarded(*api, "registration", [&] {
    perfonnx::ort::check(*api, api->AddCustomOpDomain(options, perfonnx::ort::domain(*api)));
  });
}
