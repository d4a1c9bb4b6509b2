#include <iostream>

#include "absl/flags/flag.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/server.h"
#include "isotherm/v1/inference.grpc.pb.h"
#include "tools/cli/commands.h"

ABSL_FLAG(bool, parse_special, false, "Recognise special tokens such as </s> written out in the text.");
ABSL_FLAG(bool, ids_only, false, "Print the ids on one line and nothing else.");

namespace isotherm::cli {
namespace {

absl::StatusOr<std::string> PieceText(v1::InferenceService::Stub& stub, uint32_t token) {
  v1::DetokenizeRequest request;
  request.add_tokens(token);
  request.set_render_special(true);
  v1::DetokenizeResponse response;
  grpc::ClientContext context;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(stub.Detokenize(&context, request, &response)));
  return response.text();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string text, ReadText(arguments));
  ISOTHERM_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, ConnectToServer());
  auto stub = v1::InferenceService::NewStub(channel);
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_parse_special(absl::GetFlag(FLAGS_parse_special));
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  ISOTHERM_RETURN_IF_ERROR(rpc::FromGrpc(stub->Tokenize(&context, request, &response)));
  if (absl::GetFlag(FLAGS_ids_only)) {
    for (int i = 0; i < response.tokens_size(); ++i) std::cout << (i > 0 ? " " : "") << response.tokens(i);
    std::cout << std::endl;
    return absl::OkStatus();
  }
  for (uint32_t token : response.tokens()) {
    ISOTHERM_ASSIGN_OR_RETURN(const std::string piece, PieceText(*stub, token));
    std::cout << token << "\t\"" << absl::Utf8SafeCEscape(piece) << "\"\n";
  }
  std::cout << response.tokens_size() << " tokens" << std::endl;
  return absl::OkStatus();
}

}  // namespace

Command TokenizeCommand() {
  base::Program program;
  program.name = "isotherm tokenize";
  program.summary =
      "Shows the tokens of a text, one a line: id and text. The text is the argument, or standard input.";
  program.arguments = "[TEXT]";
  program.examples = "isotherm tokenize \"The king said\"";
  program.groups = {ServerFlags(), {"Tokens", {"parse_special", "ids_only"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
