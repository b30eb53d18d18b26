import { execFileSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { pods } from "../../../agent/kube/resources.ts";
import { objectAt, objectsAt, stringAt } from "../../support/apiserver/json.ts";
import { CertificateAuthority, parseSigningRequest } from "../../support/apiserver/pki.ts";
import { startTestApiServer, type TestApiServer } from "../../support/apiserver/server.ts";
import { Client, simplePod } from "./client.ts";

let server: TestApiServer;
let admin: Client;
let anonymous: Client;

beforeAll(async () => {
  server = await startTestApiServer({
    tokens: new Map([["secret-token", { name: "robot", groups: ["bots"] }]]),
    authorizer: ({ user, verb, resource }) =>
      !(user.name === "limited" && verb !== "get" && resource === "pods") || "not today",
  });
  admin = new Client(server);
  anonymous = new Client(server, "anonymous");
});
afterAll(async () => {
  admin.close();
  anonymous.close();
  await server.close();
});

const whoami = async (client: Client, headers: Record<string, string> = {}) => {
  const { code, body } = await client.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {
    body: {},
    headers,
  });
  return code === 201 ? objectAt(body, "status", "userInfo") : code;
};

describe("authentication", () => {
  test("a client certificate is its common name and organizations", async () => {
    const pair = server.issueCertificate({
      commonName: "system:node:n",
      organizations: ["system:nodes"],
      usage: "client",
    });
    const client = new Client(server, pair);
    expect(await whoami(client)).toEqual({
      username: "system:node:n",
      groups: ["system:nodes", "system:authenticated"],
    });
    client.close();
    // A resumed TLS session knows its user too.
    expect(await whoami(client)).toMatchObject({ username: "system:node:n" });
    client.close();
  });

  test("nobody, a wrong token, an expired certificate and a stranger's are 401", async () => {
    expect(await whoami(anonymous)).toBe(401);
    expect(await whoami(anonymous, { authorization: "Bearer wrong" })).toBe(401);
    const expired = new Client(
      server,
      server.issueCertificate({ commonName: "x", usage: "client", lifetimeMs: -1000 }),
    );
    expect(await whoami(expired)).toBe(401);
    expired.close();
    const stranger = new Client(
      server,
      CertificateAuthority.create("other").issue({ commonName: "x", usage: "client" }),
    );
    expect(await whoami(stranger)).toBe(401);
    stranger.close();
    expect((await anonymous.get("/healthz")).text).toBe("ok");
    expect((await anonymous.get("/version")).body["gitVersion"]).toBe("v1.36.2");
  });

  test("static tokens and impersonation", async () => {
    expect(await whoami(anonymous, { authorization: "Bearer secret-token" })).toMatchObject({ username: "robot" });
    expect(await whoami(admin, { "impersonate-user": "eve" })).toMatchObject({ username: "eve" });
  });

  test("the kubeconfig has everything inline", () => {
    const config: unknown = parse(server.kubeconfig("node:n"));
    expect(stringAt(config, "clusters", "0", "cluster", "server")).toBe(server.url);
    const certificate = Buffer.from(
      stringAt(config, "users", "0", "user", "client-certificate-data"),
      "base64",
    ).toString();
    expect(new X509Certificate(certificate).subject).toBe("O=system:nodes\nCN=system:node:n");
  });
});

test("authorization: the hook decides, for requests and access reviews", async () => {
  const pair = server.issueCertificate({ commonName: "limited", usage: "client" });
  const client = new Client(server, pair);
  const refused = await client.post("/api/v1/namespaces/default/pods", simplePod("p"));
  expect(refused.code).toBe(403);
  expect(refused.body["message"]).toBe(
    'pods is forbidden: User "limited" cannot create resource "pods" in API group "" in the namespace "default": not today',
  );
  client.close();
  const review = (user: string) =>
    admin.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", {
      spec: { user, resourceAttributes: { verb: "create", resource: "pods" } },
    });
  expect((await review("limited")).body["status"]).toEqual({ allowed: false, reason: "not today" });
  expect((await review("other")).body["status"]).toEqual({ allowed: true });
  expect((await review("system:anonymous")).body["status"]).toEqual({ allowed: false });
});

describe("service account tokens", () => {
  const request = (spec: unknown) => admin.post("/api/v1/namespaces/default/serviceaccounts/default/token", { spec });
  const review = async (token: string, audiences?: string[]) => {
    const { body } = await admin.post("/apis/authentication.k8s.io/v1/tokenreviews", { spec: { token, audiences } });
    return objectAt(body, "status");
  };

  test("are JWTs that authenticate until their pod is gone", async () => {
    const pod = server.objects.create(pods, {
      metadata: { name: "t" },
      spec: { nodeName: "n", containers: [{ name: "c", image: "i" }] },
    });
    const boundObjectRef = { apiVersion: "v1", kind: "Pod", name: "t", uid: pod.metadata.uid };
    const { code, body } = await request({ expirationSeconds: 3607, boundObjectRef });
    expect(code).toBe(201);
    const token = stringAt(body, "status", "token");
    const claims: unknown = JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString());
    expect(claims).toMatchObject({
      sub: "system:serviceaccount:default:default",
      "kubernetes.io": { namespace: "default", pod: { name: "t", uid: pod.metadata.uid }, node: { name: "n" } },
    });
    // What the pod's volume is told is one hour, although the token lives longer.
    const lifetime = Date.parse(stringAt(body, "status", "expirationTimestamp")) - Date.now();
    expect(Math.round(lifetime / 1000 / 60)).toBe(60);
    expect(await whoami(anonymous, { authorization: `Bearer ${token}` })).toMatchObject({
      username: "system:serviceaccount:default:default",
      extra: { "authentication.kubernetes.io/pod-name": ["t"] },
    });
    expect((await review(token))["authenticated"]).toBe(true);
    server.objects.delete(pods, { name: "t" }, { gracePeriodSeconds: 0 });
    expect(await whoami(anonymous, { authorization: `Bearer ${token}` })).toBe(401);
    expect((await review(token))["authenticated"]).toBeUndefined();
  });

  test("are for their audiences alone", async () => {
    const { body } = await request({ audiences: ["vault"], expirationSeconds: 600 });
    const token = stringAt(body, "status", "token");
    expect(await whoami(anonymous, { authorization: `Bearer ${token}` })).toBe(401);
    expect(await review(token, ["vault", "x"])).toMatchObject({ authenticated: true, audiences: ["vault"] });
  });

  test("are refused for too short a life or another pod", async () => {
    expect((await request({ expirationSeconds: 10 })).body["message"]).toContain(
      "may not specify a duration less than 10 minutes",
    );
    expect((await request({ boundObjectRef: { kind: "Pod", name: "none" } })).code).toBe(404);
    server.objects.create(pods, { metadata: { name: "u" }, spec: { containers: [{ name: "c", image: "i" }] } });
    const other = await request({ boundObjectRef: { kind: "Pod", name: "u", uid: "other" } });
    expect([other.code, other.body["message"]]).toEqual([
      409,
      expect.stringContaining("does not match the UID in record"),
    ]);
  });

  test("a changed signature is noticed", async () => {
    const { body } = await request({});
    const token = stringAt(body, "status", "token");
    const [head, claims, signature = ""] = token.split(".");
    const forged = `${head}.${claims}.${signature.startsWith("A") ? "B" : "A"}${signature.slice(1)}`;
    expect(await whoami(anonymous, { authorization: `Bearer ${forged}` })).toBe(401);
  });
});

describe("certificate requests", () => {
  const makeRequest = (subject: string, ...more: string[]) => {
    const dir = mkdtempSync(join(tmpdir(), "csr-"));
    try {
      const args = [
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        subject,
        "-keyout",
        join(dir, "key"),
        "-out",
        join(dir, "csr"),
        ...more,
      ];
      execFileSync("openssl", args, { stdio: "ignore" });
      return readFileSync(join(dir, "csr"), "utf8");
    } finally {
      rmSync(dir, { recursive: true });
    }
  };

  test("of a kubelet's serving side are approved and signed with its names", async () => {
    const pem = makeRequest(
      "/O=system:nodes/CN=system:node:n",
      "-addext",
      "subjectAltName=DNS:n,IP:10.0.0.5,IP:fd00::5",
    );
    expect(parseSigningRequest(pem)).toMatchObject({
      commonName: "system:node:n",
      organizations: ["system:nodes"],
      names: ["n", "10.0.0.5", "fd00:0:0:0:0:0:0:5"],
    });
    await admin.post("/apis/certificates.k8s.io/v1/certificatesigningrequests", {
      metadata: { name: "csr" },
      spec: {
        signerName: "kubernetes.io/kubelet-serving",
        request: Buffer.from(pem).toString("base64"),
        usages: ["digital signature", "server auth"],
        expirationSeconds: 7200,
      },
    });
    const { body } = await admin.get("/apis/certificates.k8s.io/v1/certificatesigningrequests/csr");
    expect(stringAt(body, "spec", "username")).toBe("admin");
    expect(objectsAt(body, "status", "conditions")[0]).toMatchObject({ type: "Approved" });
    const certificate = new X509Certificate(Buffer.from(stringAt(body, "status", "certificate"), "base64"));
    expect(certificate.checkHost("n")).toBe("n");
    expect(certificate.checkIP("10.0.0.5")).toBe("10.0.0.5");
    expect(certificate.verify(new X509Certificate(server.caCertificate).publicKey)).toBe(true);
    const minutesLeft = (Date.parse(certificate.validTo) - Date.now()) / 60_000;
    expect(minutesLeft).toBeGreaterThan(118);
    expect(minutesLeft).toBeLessThan(122);
  });

  test("that are damaged fail with a reason", async () => {
    await admin.post("/apis/certificates.k8s.io/v1/certificatesigningrequests", {
      metadata: { name: "bad" },
      spec: { signerName: "kubernetes.io/kubelet-serving", request: Buffer.from("nonsense").toString("base64") },
    });
    const { body } = await admin.get("/apis/certificates.k8s.io/v1/certificatesigningrequests/bad");
    expect(objectsAt(body, "status", "conditions")[1]).toMatchObject({
      type: "Failed",
      reason: "SignerValidationFailure",
    });
  });
});
