# The image of the service: static binaries and the authorities that TLS trusts,
# nothing else. `make image` builds what is copied here.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY trestle trestlectl trestle-loadtest /
USER 65532:65532
EXPOSE 9500 8080 7070
ENTRYPOINT ["/trestle"]
CMD ["serve"]
