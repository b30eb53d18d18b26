const name = /^(?:[A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$/;
const dnsLabel = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?";
const dnsSubdomain = new RegExp(`^${dnsLabel}(?:\\.${dnsLabel})*$`);

/** True for a label or taint key: `name` or `dns.subdomain/name`. */
export function isLabelKey(key: string): boolean {
  const slash = key.indexOf("/");
  if (slash < 0) return name.test(key);
  const prefix = key.slice(0, slash);
  return prefix.length <= 253 && dnsSubdomain.test(prefix) && name.test(key.slice(slash + 1));
}

/** True for a label or taint value; empty is one. */
export function isLabelValue(value: string): boolean {
  return value === "" || name.test(value);
}
