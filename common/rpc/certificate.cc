#include "common/rpc/certificate.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace isotherm::rpc {
namespace {

template <auto free_function>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    free_function(object);
  }
};
using Bio = std::unique_ptr<BIO, Deleter<BIO_free>>;
using X509Ptr = std::unique_ptr<X509, Deleter<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;

// The length of no passphrase: a server cannot ask anybody for one.
int NoPassphrase(char*, int, int, void*) { return 0; }

Bio Over(const std::string& pem) { return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()))); }

absl::StatusOr<std::string> ReadPem(const char* what, const std::string& path) {
  absl::StatusOr<std::string> pem = base::ReadSmallFile(path);
  if (pem.ok()) return pem;
  return absl::Status(pem.status().code(), absl::StrCat(what, " ", std::string(pem.status().message())));
}

absl::StatusOr<X509Ptr> ReadX509(const std::string& path) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string pem, ReadPem("certificate", path));
  X509Ptr certificate(PEM_read_bio_X509(Over(pem).get(), nullptr, &NoPassphrase, nullptr));
  if (certificate == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no certificate in PEM format"));
  }
  return certificate;
}

absl::StatusOr<Key> ReadKey(const std::string& path) {
  ISOTHERM_ASSIGN_OR_RETURN(const std::string pem, ReadPem("private key", path));
  Key key(PEM_read_bio_PrivateKey(Over(pem).get(), nullptr, &NoPassphrase, nullptr));
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": holds no private key in PEM format, or one with a passphrase"));
  }
  return key;
}

absl::Time ToTime(const ASN1_TIME* time) {
  std::tm fields{};
  if (ASN1_TIME_to_tm(time, &fields) != 1) return absl::InfinitePast();
  return absl::FromTM(fields, absl::UTCTimeZone());
}

Certificate Describe(X509* certificate) {
  const Bio text(BIO_new(BIO_s_mem()));
  X509_NAME_print_ex(text.get(), X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253);
  char* data = nullptr;
  const long size = BIO_get_mem_data(text.get(), &data);
  return {std::string(data, static_cast<size_t>(size)), ToTime(X509_get0_notBefore(certificate)),
          ToTime(X509_get0_notAfter(certificate))};
}

}  // namespace

absl::StatusOr<Certificate> ReadCertificate(const std::string& path) {
  ISOTHERM_ASSIGN_OR_RETURN(const X509Ptr certificate, ReadX509(path));
  return Describe(certificate.get());
}

absl::Status CheckTlsFiles(const TlsFiles& files, absl::Time now) {
  if (!files.ca.empty()) ISOTHERM_RETURN_IF_ERROR(ReadX509(files.ca).status());
  if (files.certificate.empty() != files.key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(files.certificate, files.key,
                                                   files.key.empty()
                                                       ? ": a certificate without its private key"
                                                       : ": a private key without its certificate"));
  }
  if (files.certificate.empty()) return absl::OkStatus();
  ISOTHERM_ASSIGN_OR_RETURN(const X509Ptr certificate, ReadX509(files.certificate));
  ISOTHERM_ASSIGN_OR_RETURN(const Key key, ReadKey(files.key));
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the private key ", files.key, " does not belong to the certificate ", files.certificate));
  }
  const Certificate facts = Describe(certificate.get());
  if (facts.not_after <= now) {
    return absl::FailedPreconditionError(
        absl::StrCat("the certificate ", files.certificate, " expired on ",
                     absl::FormatTime("%Y-%m-%d", facts.not_after, absl::UTCTimeZone()), ": renew it"));
  }
  return absl::OkStatus();
}

}  // namespace isotherm::rpc
