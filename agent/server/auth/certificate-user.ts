import { createHash } from "node:crypto";
import type { UserInfo } from "../port.ts";
import { type Certificate, readName } from "./certificate.ts";

const nameOid = {
  commonName: "2.5.4.3",
  organization: "2.5.4.10",
  /** Kubernetes' own: the user's UID. */
  uid: "1.3.6.1.4.1.57683.2",
} as const;

/** Key of UserInfo.extra that says which credential it was, for the audit log. */
const credentialIDKey = "authentication.kubernetes.io/credential-id";

/**
 * The user that a verified client certificate stands for: the last common name, every organization as a group.
 * Undefined if it has no common name, and so is no credential. Throws an Error when its name is malformed or its UID is
 * not exactly one text.
 *
 * @param readsUID feature gate AllowParsingUserUIDFromCertAuth
 */
export function certificateUser(certificate: Certificate, readsUID: boolean): UserInfo | undefined {
  const attributes = readName(certificate.subject);
  const values = (type: string) => attributes.filter((one) => one.type === type).map(({ value }) => value);
  const texts = (type: string) => values(type).filter((value) => value !== undefined);
  const username = texts(nameOid.commonName).at(-1) ?? "";
  if (username === "") return undefined;
  const fingerprint = createHash("sha256").update(certificate.x509.raw).digest("hex");
  return {
    username,
    uid: readsUID ? onlyUID(values(nameOid.uid)) : "",
    groups: texts(nameOid.organization),
    extra: { [credentialIDKey]: [`X509SHA256=${fingerprint}`] },
  };
}

function onlyUID(values: readonly (string | undefined)[]): string {
  if (values.length === 0) return "";
  const [uid, ...more] = values;
  if (more.length > 0) throw new Error("the client certificate has more than one UID");
  if (uid === undefined || uid === "") throw new Error("the client certificate's UID is empty or no text");
  return uid;
}
