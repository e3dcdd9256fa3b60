// SPDX-License-Identifier: MIT
/*
 * Reads all evidence of a device with libnl: evidence_libnl DEVICE DIR.
 *
 * Each object goes to a file DIR/NAME.bin. Written for a kernel that has the family "pci-tsm".
 */

#include <errno.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { EVIDENCE_READ = 1 };
enum { TYPE = 1, TYPE_MASK, FLAGS, DEV_NAME, NONCE, VAL, ATTRIBUTES };

static const char *const names[] = {
	"cert0", "cert1", "cert2", "cert3", "cert4", "cert5",
	"cert6", "cert7", "vca", "measurements", "report",
};

#define TYPES (sizeof(names) / sizeof(names[0]))

struct reader {
	const char *directory;
	FILE *object;
	int status;
	int done;
};

/* Objects come in ascending order, each message going on with the one before or starting anew. */
static int on_valid(struct nl_msg *message, void *data)
{
	struct reader *reader = data;
	struct nlattr *found[ATTRIBUTES];
	char path[4096];
	size_t size;

	if (genlmsg_parse(nlmsg_hdr(message), 0, found, VAL, NULL) < 0)
		return -NLE_INVAL;
	if (found[TYPE]) {
		uint32_t type = nla_get_u32(found[TYPE]);

		if (reader->object && fclose(reader->object) != 0)
			return -NLE_FAILURE;
		reader->object = NULL;
		if (type >= TYPES)
			return -NLE_RANGE;
		snprintf(path, sizeof(path), "%s/%s.bin", reader->directory, names[type]);
		reader->object = fopen(path, "wb");
	}
	if (!found[VAL] || !reader->object)
		return -NLE_MISSING_ATTR;
	size = (size_t)nla_len(found[VAL]);
	return fwrite(nla_data(found[VAL]), 1, size, reader->object) == size ? NL_OK : -NLE_FAILURE;
}

/* The errno of a dump stands in its last message. */
static int on_finish(struct nl_msg *message, void *data)
{
	struct reader *reader = data;

	reader->done = 1;
	if (nlmsg_datalen(nlmsg_hdr(message)) >= (int)sizeof(int))
		reader->status = *(int *)nlmsg_data(nlmsg_hdr(message));
	return NL_STOP;
}

static int on_error(struct sockaddr_nl *from, struct nlmsgerr *error, void *data)
{
	struct reader *reader = data;

	(void)from;
	reader->done = 1;
	reader->status = error->error;
	return NL_STOP;
}

/* Returns 0, or a negative errno; a message is printed for what libnl has a number of its own. */
static int read_evidence(struct nl_sock *socket, struct reader *reader, const char *device)
{
	int family = genl_ctrl_resolve(socket, "pci-tsm");
	struct nl_msg *message = nlmsg_alloc();
	struct nl_cb *callbacks = nl_cb_alloc(NL_CB_DEFAULT);
	int result = family;

	if (family < 0 || !message || !callbacks)
		goto out;
	nl_cb_set(callbacks, NL_CB_VALID, NL_CB_CUSTOM, on_valid, reader);
	nl_cb_set(callbacks, NL_CB_FINISH, NL_CB_CUSTOM, on_finish, reader);
	nl_cb_err(callbacks, NL_CB_CUSTOM, on_error, reader);

	genlmsg_put(message, NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, NLM_F_DUMP, EVIDENCE_READ, 1);
	nla_put_u32(message, TYPE_MASK, (1u << TYPES) - 1);
	nla_put_string(message, DEV_NAME, device);
	result = nl_send_auto(socket, message);
	while (result >= 0 && !reader->done)
		result = nl_recvmsgs(socket, callbacks);
out:
	nl_cb_put(callbacks);
	nlmsg_free(message);
	if (reader->object && fclose(reader->object) != 0 && result >= 0)
		return -errno;
	if (result < 0 && !reader->done) {
		fprintf(stderr, "%s: %s\n", device, nl_geterror(result));
		return -EIO;
	}
	if (reader->status < 0)
		fprintf(stderr, "%s: %s\n", device, strerror(-reader->status));
	return reader->status;
}

int main(int argc, char **argv)
{
	struct reader reader = { 0 };
	struct nl_sock *socket;
	int result;

	if (argc != 3) {
		fprintf(stderr, "usage: %s DEVICE DIR\n", argv[0]);
		return 2;
	}
	reader.directory = argv[2];
	socket = nl_socket_alloc();
	if (!socket)
		return 1;
	result = genl_connect(socket);
	if (result < 0)
		fprintf(stderr, "%s: %s\n", argv[1], nl_geterror(result));
	else
		result = read_evidence(socket, &reader, argv[1]);
	nl_socket_free(socket);
	return result < 0;
}
